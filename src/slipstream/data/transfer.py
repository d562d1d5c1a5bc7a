"""Batches on their way to the device that trains."""

from __future__ import annotations

from dataclasses import replace

import torch

from slipstream.data.batch import Batch, Inputs
from slipstream.errors import ConfigError


def checked_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        ConfigError: There is no such device here.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name}, and torch sees no GPU", remedy="use device=cpu, or a build of torch for GPUs"
        )
    return device


class Sender:
    """Sends batches to a device; to a GPU from pinned memory on a stream of its own.

    The host goes on at once, so a batch is copied while the GPU still computes the step before.

    Args:
        device: Where to.
        keep_ids: Leave ids and bags where they are, for tables in host memory.
    """

    def __init__(self, device: torch.device, *, keep_ids: bool = False) -> None:
        self.device, self.keep_ids = device, keep_ids
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: Batch) -> Batch:
        """The batch on the device; work queued there from now on waits for the copy."""
        if self.device.type == "cpu":
            return batch
        ids, bags = batch.inputs.ids, batch.inputs.bags
        if self.keep_ids:
            batch = replace(batch, inputs=Inputs(batch.inputs.dense, ids[:0], ()))
        sent = batch.to(self.device) if self._stream is None else self._copied(batch, self._stream)
        return replace(sent, inputs=Inputs(sent.inputs.dense, ids, bags)) if self.keep_ids else sent

    def _copied(self, batch: Batch, stream: torch.cuda.Stream) -> Batch:
        with torch.cuda.stream(stream):
            sent = batch.pin_memory().to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(stream)
        for tensor in sent.tensors():
            tensor.record_stream(current)
        return sent
