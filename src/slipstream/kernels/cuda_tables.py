"""Tables and the settings of a step as the GPU kernels read them: small tensors of integers, made once and kept."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slipstream.errors import UnsupportedOption
from slipstream.kernels.hashing import SEED_FACTOR, signed, stream
from slipstream.kernels.rounding import ROUNDING_STREAM
from slipstream.kernels.signal import TRAIL_LANES, is_measured
from slipstream.kernels.types import Rule, TableSet, TableState, UpdateSettings

RECORD = 12
"""int64 numbers of a table, see ``cuda_dedup.TABLE_FIELDS``."""
NUMBERS = 16
"""int64 numbers of a step, see ``cuda_dedup.SETTINGS``."""


def device_integers(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """int64 numbers on a device, sent without waiting."""
    host = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


@dataclass(slots=True)
class Tables:
    """Tables of one update.

    Attributes:
        records: int64 [T, RECORD] on the device.
        bases: int64 [T + 1] on the device, the key of each table's row 0, and the number of all rows.
        num_rows: Rows of all tables: the key of lookups that update nothing.
        dim: D.
        dtype: Element type of the tables; state is float32.
        itemsize: Its bytes.
        aligned: Whether every row of weights and state begins at a multiple of 16 bytes.
        measures: Whether a table has a signal.
        remembers: Whether a table has ``last_step``.
        settings: int64 [NUMBERS] on the device: the step's numbers.
    """

    records: Tensor
    bases: Tensor
    num_rows: int
    dim: int
    dtype: torch.dtype
    itemsize: int
    aligned: bool
    measures: bool
    remembers: bool
    settings: Tensor
    _scales: Tensor | None = field(default=None)
    _scales_of: tuple[float, ...] | None = field(default=None)

    def scales(self, tables: Sequence[TableState]) -> Tensor:
        """float32 [T] on the device; sent only when they change, and not at all when they are on the device."""
        scales = [table.scale for table in tables]
        device = self.records.device
        if any(isinstance(scale, Tensor) for scale in scales):
            parts = [
                scale.to(torch.float32) if isinstance(scale, Tensor) else torch.full((), scale, device=device)
                for scale in scales
            ]
            return torch.stack(parts)
        values = tuple(float(scale) for scale in scales)
        if self._scales is None or values != self._scales_of:
            host = torch.tensor(values, dtype=torch.float32, pin_memory=device.type == "cuda")
            self._scales, self._scales_of = host.to(device, non_blocking=True), values
        return self._scales


def prepared(tables: Sequence[TableState]) -> Tables:
    """The tables as the kernels read them; kept in a TableSet.

    Raises:
        UnsupportedOption: Tables of several kinds, or a state that does not fit its table.
    """
    found = tables.prepared if isinstance(tables, TableSet) else None
    if isinstance(found, Tables):
        return found
    state = _prepare(tables)
    if isinstance(tables, TableSet):
        tables.prepared = state
    return state


def _prepare(tables: Sequence[TableState]) -> Tables:
    first = tables[0].weight
    dim, dtype, device, itemsize = first.shape[1], first.dtype, first.device, first.element_size()
    records: list[list[int]] = []
    bases, aligned = [0], dim * itemsize % 16 == 0 and dim % 4 == 0
    for table in tables:
        _check_state(table, dim, dtype, device)
        weight, rows = table.weight, table.weight.shape[0]
        wide = [tensor for tensor in (weight, table.first, table.second) if tensor is not None and tensor.dim() == 2]
        aligned = aligned and all(tensor.data_ptr() % 16 == 0 for tensor in wide)
        hashes = [signed(seed * SEED_FACTOR) for seed in (table.seed, table.seed ^ ROUNDING_STREAM)]
        first_address, second_address = _address(table.first), _address(table.second)
        records.append([
            weight.data_ptr(), rows, first_address, second_address, _address(table.gate), _address(table.last_step),
            hashes[0], _address(table.signal), _address(table.trail), bases[-1], hashes[1], int(table.by_sample),
        ])  # fmt: skip
        bases.append(bases[-1] + rows)
    return Tables(
        device_integers(records, device),
        device_integers(bases, device),
        bases[-1],
        dim,
        dtype,
        itemsize,
        aligned,
        any(table.signal is not None for table in tables),
        any(table.last_step is not None for table in tables),
        torch.zeros(NUMBERS, dtype=torch.int64, device=device),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check_state(table: TableState, dim: int, dtype: torch.dtype, device: torch.device) -> None:
    whole, rows = tuple(table.weight.shape), tuple(table.weight.shape[:1])
    for name, tensor, wanted, shapes in (
        ("weight", table.weight, dtype, ((rows[0], dim),)),
        ("first state", table.first, torch.float32, (whole, rows)),
        ("second state", table.second, torch.float32, (whole,)),
        ("gate", table.gate, torch.uint8, (rows,)),
        ("last_step", table.last_step, torch.int32, (rows,)),
        ("signal", table.signal, torch.uint16, (rows,)),
        ("trail", table.trail, torch.float32, ((*rows, TRAIL_LANES + 1),)),
    ):
        if tensor is None:
            continue
        if tensor.dtype != wanted or tuple(tensor.shape) not in shapes or tensor.device != device:
            raise UnsupportedOption(
                f"{name} of a table with weight {whole} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}",
                remedy=f"it must be {wanted} {shapes[0]} on {device}; load the state of a table of the same size",
            )
        if not tensor.is_contiguous():
            raise UnsupportedOption(
                "the rows of a table, its state or its gate are not contiguous in memory",
                remedy="set weight.data = weight.data.contiguous()",
            )
    if table.signal is not None and table.second is None and table.trail is None:
        raise UnsupportedOption(
            "a table has a signal but neither a second moment nor a trail",
            remedy="set its trail to zeros, float32 [rows, 5]",
        )


def _bits(value: float) -> int:
    return struct.unpack("<i", struct.pack("<f", value))[0]


def _log2(value: float) -> float:
    return math.log2(value) if value > 0.0 else -math.inf


def write_settings(state: Tables, s: UpdateSettings) -> None:
    """Sends a step's numbers to the device, without waiting.

    A graph that is being captured does not take part: its kernels read what was last sent before each replay.

    Raises:
        UnsupportedOption: Rows that catch up on decay would change their sign.
    """
    shrink = 1.0 - s.lr * s.weight_decay
    if s.decoupled and state.remembers and shrink < 0.0:
        raise UnsupportedOption(
            f"lr * weight_decay is {s.lr * s.weight_decay}", remedy='catch_up needs less than 1; use on_skip="freeze"'
        )
    size = s.lr * (1 - s.beta2**s.step) ** 0.5 / (1 - s.beta1**s.step) if s.rule == Rule.ADAM else 0.0
    floats = (
        s.lr, s.eps, s.beta1, s.beta2, 1 - s.beta1, 1 - s.beta2, s.weight_decay, shrink, size,
        _log2(s.beta1), _log2(s.beta2), _log2(shrink),
    )  # fmt: skip
    if state.settings.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    numbers = [s.step, signed(stream(s.step, 0)), int(is_measured(s.step)), *map(_bits, floats), 0]
    host = torch.tensor(numbers, dtype=torch.int64, pin_memory=state.settings.device.type == "cuda")
    state.settings.copy_(host, non_blocking=True)
