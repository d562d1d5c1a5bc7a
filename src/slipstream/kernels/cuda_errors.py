"""Ids outside their table, on a GPU: noted by the kernels, raised without making the host wait.

A kernel that meets such an id never reads or writes by it: a lookup yields zeros, an update leaves it out. The first
one found is noted in a few numbers on the device. :func:`poll` copies them to the host behind the work already
queued, and raises what an earlier copy brought, so an error comes one or a few steps late and costs no wait. Two ways
to have it at once: :func:`raise_now` waits and raises, and with ``set_check("always")`` (or the environment's
``SLIPSTREAM_CHECK=always``) every kernel call does, which names the call at fault and is slow.

The numbers stay where they are for the life of the process, so graphs that were captured with them stay valid.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slipstream.errors import ConfigError, IndexOutOfRange

Check = Literal["lazy", "always"]

FIELDS = 5
"""int64 numbers of a note: 1 + (feature or table) << 40 | position, 0 for none; the id; rows of the table; the call."""
CALLS = ("lookup", "update", "count", "input classification", "offsets")
"""What met the id, by the note's last number."""
POSITION_BITS = 40


@dataclass(slots=True)
class _Notes:
    """A device's note, and the copy of it that is on its way to the host."""

    flag: Tensor
    copy: Tensor
    sent: bool = False
    event: torch.cuda.Event | None = None


_notes: dict[torch.device, _Notes] = {}
_check: list[Check] = ["always" if os.environ.get("SLIPSTREAM_CHECK") == "always" else "lazy"]


def set_check(check: Check) -> Check:
    """When errors of GPU kernels are raised; returns the setting before.

    Args:
        check: ``lazy``: at a later step or on request, without waiting. ``always``: by the call that met them.

    Raises:
        ConfigError: Another word.
    """
    if check not in ("lazy", "always"):
        raise ConfigError(f"check={check!r} is not an option", remedy="use lazy or always")
    before, _check[0] = _check[0], check
    return before


def flag(device: torch.device) -> Tensor:
    """The device's note, int64 [FIELDS]."""
    return _notes_of(device).flag


def _notes_of(device: torch.device) -> _Notes:
    notes = _notes.get(device)
    if notes is None:
        copy = torch.zeros(FIELDS, dtype=torch.int64, pin_memory=device.type == "cuda")
        notes = _notes[device] = _Notes(torch.zeros(FIELDS, dtype=torch.int64, device=device), copy)
    return notes


def after_call(device: torch.device) -> None:
    """Called by every kernel call when it has queued its work: with ``always`` waits and raises."""
    if _check[0] == "always" and not _capturing(device):
        raise_now(device)


def poll(device: torch.device) -> None:
    """Raises what an earlier call brought to the host, and sends for the news; never waits. Called once a step.

    Raises:
        IndexOutOfRange: An id was outside its table in an earlier step.
    """
    if _capturing(device):
        return
    notes = _notes_of(device)
    if notes.sent:
        if notes.event is not None and not notes.event.query():
            return  # the copy of an earlier step is still on its way
        notes.sent = False
        _raise(notes)
    notes.copy.copy_(notes.flag, non_blocking=True)
    notes.sent = True
    if device.type == "cuda":
        notes.event = notes.event or torch.cuda.Event()
        notes.event.record(torch.cuda.current_stream(device))


def raise_now(device: torch.device | str | None = None) -> None:
    """Waits for the work queued on a device (or on all that were used) and raises what went wrong in it.

    Raises:
        IndexOutOfRange: An id was outside its table.
    """
    devices = list(_notes) if device is None else [torch.device(device)]
    for one in devices:
        notes = _notes_of(one)
        notes.sent = False
        notes.copy.copy_(notes.flag)
        _raise(notes)


def _raise(notes: _Notes) -> None:
    code, id_, rows, call, _ = notes.copy.tolist()
    if code == 0:
        return
    notes.copy.zero_()
    notes.flag.zero_()
    feature, position = (code - 1) >> POSITION_BITS, (code - 1) & ((1 << POSITION_BITS) - 1)
    if CALLS[call] == "offsets":
        raise IndexOutOfRange(
            f"feature {feature}, bag {position}: offsets must not fall and must lie between 0 and the number of ids, "
            f"{rows}",
            remedy="pass offsets as torch.nn.EmbeddingBag takes them",
        )
    what = "table" if CALLS[call] == "update" else "feature"
    raise IndexOutOfRange(
        f"{CALLS[call]}, {what} {feature}: lookup {position} has id {id_}, the table has {rows} rows",
        remedy="use ids from 0 to num_embeddings - 1, and do not change them before optimizer.step()",
    )


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
