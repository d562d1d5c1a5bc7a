"""Drop-in replacements of torch's embedding modules.

Same constructors, same ``state_dict``, row gradients in backward.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from slipstream.embedding.operators import look_up
from slipstream.embedding.table import Site, Table
from slipstream.errors import ConfigError, UnsupportedOption


def refuse_unsupported(module: nn.Embedding | nn.EmbeddingBag) -> None:
    """Raise UnsupportedOption for options that row gradients cannot honour."""
    if module.max_norm is not None:
        raise UnsupportedOption(
            "max_norm rescales rows in every forward pass, which row gradients do not do",
            remedy="leave max_norm out, or keep torch's module for this table",
        )
    if module.scale_grad_by_freq:
        raise UnsupportedOption(
            "scale_grad_by_freq is not supported", remedy="leave it out, or use slipstream.optim.RowwiseAdagrad"
        )
    if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        raise UnsupportedOption(
            "mode='max' is not supported", remedy="use mode='sum' or 'mean', or keep torch's module"
        )


_READ_BY_TORCH = ("max_norm", "scale_grad_by_freq", "mode")
"""What torch's modules read in every forward pass, so that it may be set at any time."""


class _OneTable(nn.Module):
    """What Embedding and EmbeddingBag share: one table, one site."""

    weight: nn.Parameter
    site: Site
    out_dtype: torch.dtype | None

    @property
    def table(self) -> Table:
        """The table: its gate, and what was skipped."""
        return self.site.tables[0]

    def _adopt(self, table: Table | None = None) -> None:
        self.site = Site([table or Table(self.weight)])
        self.out_dtype = None

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """See torch. A parameter set as the weight comes here, too, and is the table's from then on.

        load_state_dict(assign=True), tying, and removing a parametrization put another one in the weight's place.
        """
        super().register_parameter(name, param)
        if name == "weight" and param is not None and "site" in self.__dict__:
            self.site = self.site.with_weight(param)

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        super().__setattr__(name, value)
        if name in _READ_BY_TORCH and "site" in self.__dict__:
            try:
                refuse_unsupported(cast(Any, self))
            except UnsupportedOption:
                self.__dict__[name] = before
                raise

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        self.table.moved(self.weight, fn)
        self.site.place_tokens()
        return result


class Embedding(_OneTable, nn.Embedding):
    """``torch.nn.Embedding`` with row gradients: ids of any shape [*] → [*, D].

    Takes the arguments of ``torch.nn.Embedding``; ``sparse`` is accepted and has no meaning here (backward never
    builds a dense or a COO gradient).

    Raises:
        UnsupportedOption: ``max_norm`` or ``scale_grad_by_freq`` is set.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_unsupported(self)
        self._adopt()

    def forward(self, input: Tensor) -> Tensor:
        """Rows of ``input``, [*] → [*, D]; ids outside the table raise IndexOutOfRange."""
        padding = _padding(self.padding_idx, self.weight)
        ids = input.reshape(-1, 1)
        rows = look_up(self.site, [self.weight], ids, padding=padding, out_dtype=self.out_dtype)
        return rows.view(*input.shape, self.embedding_dim)


class EmbeddingBag(_OneTable, nn.EmbeddingBag):
    """``torch.nn.EmbeddingBag`` with row gradients, modes ``sum`` and ``mean``: bags → [B, D].

    Takes the arguments of ``torch.nn.EmbeddingBag``, ``include_last_offset`` and ``padding_idx`` included; ``sparse``
    is accepted and has no meaning here.

    Raises:
        UnsupportedOption: ``max_norm``, ``scale_grad_by_freq`` or ``mode="max"`` is set.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_unsupported(self)
        self._adopt()

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Pooled rows [B, D].

        Args:
            input: Integers [B, L], bags of equal length, or [N] with offsets.
            offsets: Start of each bag [B], or [B + 1] with ``include_last_offset``.
            per_sample_weights: Factor of each lookup, shaped as ``input``; mode ``sum`` only.

        Raises:
            ConfigError: The shapes do not fit each other, or offsets do not begin at 0 (not looked at on a GPU).
        """
        if per_sample_weights is not None:
            if self.mode != "sum":
                raise UnsupportedOption("per_sample_weights needs mode='sum'", remedy="use mode='sum'")
            if per_sample_weights.shape != input.shape:
                raise ConfigError(
                    f"per_sample_weights has shape {tuple(per_sample_weights.shape)}, input {tuple(input.shape)}",
                    remedy="give one weight for each id",
                )
            wide = self.weight.dtype == torch.float64
            per_sample_weights = per_sample_weights.reshape(-1).to(torch.float64 if wide else torch.float32)
        if input.dim() == 2:
            if offsets is not None:
                raise ConfigError("offsets are only for a 1-dimensional input", remedy="leave offsets out")
            bags, length = input.shape
            offsets = torch.arange(bags + 1, device=input.device) * length
        elif input.dim() != 1 or offsets is None:
            raise ConfigError(
                f"input of shape {tuple(input.shape)} {'without' if offsets is None else 'with'} offsets",
                remedy="pass [B, L], or [N] with offsets",
            )
        else:
            _check_offsets(offsets, self.include_last_offset)
            if not self.include_last_offset:
                offsets = torch.cat([offsets, offsets.new_full((1,), input.shape[0])])
        padding = _padding(self.padding_idx, self.weight)
        pooled = look_up(
            self.site,
            [self.weight],
            input.reshape(-1),
            offsets,
            per_sample_weights,
            mean=self.mode == "mean",
            padding=padding,
            out_dtype=self.out_dtype,
        )
        return pooled.view(-1, self.embedding_dim)


def _padding(index: int | None, weight: Tensor) -> tuple[int, ...]:
    """The row [D] of a weight [R, D] that has no gradient, if any; set after construction it may count from the end."""
    return () if index is None else (index + weight.shape[0] if index < 0 else index,)


def _check_offsets(offsets: Tensor, include_last: bool) -> None:
    if offsets.dim() != 1 or (include_last and not offsets.shape[0]):
        raise ConfigError(
            f"offsets of shape {tuple(offsets.shape)}",
            remedy="pass [B + 1], as include_last_offset is set" if include_last else "pass [B]",
        )
    # A compiled graph would break here; on a GPU the value would have to be waited for.
    if not torch.compiler.is_compiling() and offsets.device.type == "cpu" and offsets.shape[0] and int(offsets[0]):
        raise ConfigError(
            f"offsets begin at {int(offsets[0])}, not at 0", remedy="pass where each bag begins, not where it ends"
        )
