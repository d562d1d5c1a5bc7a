"""A TorchRec model (EmbeddingBagCollection, not sharded) on converted tables, with a policy in front of it."""

from typing import Any

import torch
from torchrec import KeyedJaggedTensor

import slipstream as sl
from slipstream.data import Columns


def accelerate(model: Any, lr: float, untouched: Any = "lazy") -> Any:
    """The model's own training loop then runs as before, with the optimizer returned."""
    sl.convert(model)  # EmbeddingBagCollection keeps its keys: embedding_bags.<table>.weight
    return sl.optim.Adam(model.parameters(), lr=lr, untouched=untouched)


def features(names: list[str], columns: dict[str, torch.Tensor]) -> KeyedJaggedTensor:
    """Ids ``[B]`` or ``[B, L]`` (0 for nothing there) by name, as TorchRec's models take them."""
    padded = [columns[name].reshape(columns[name].shape[0], -1) for name in names]
    present = [torch.ones_like(ids, dtype=torch.bool) if ids.shape[1] == 1 else ids > 0 for ids in padded]
    values = torch.cat([ids[there] for ids, there in zip(padded, present, strict=True)])
    return KeyedJaggedTensor.from_lengths_sync(names, values, torch.cat([there.sum(1) for there in present]))


def train(model: Any, optimizer: Any, loader: Any, names: list[str], policy: Any, batch_size: int) -> Any:
    """One epoch; a batch of the loader is a dictionary of columns: ids, ``dense`` and ``label``."""
    skipper = sl.Skipper(model, policy, batch_size=batch_size, to_batch=Columns(names, "label", dense=["dense"]))
    for batch in skipper(loader):
        logits = model(batch.inputs.dense, features(names, batch.carried)).squeeze(1)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        optimizer.zero_grad()
        (losses * batch.weights).mean().backward()
        optimizer.step()
    return skipper.report()
