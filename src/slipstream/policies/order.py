"""Order alone: hot and cold inputs apart, nothing skipped. FAE's two orders, and the control of Slipstream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from slipstream.policies.base import Gated, Policy, PolicyBaseConfig, TrainingData, share_in_range, validated
from slipstream.policies.hot_split import interleave, split_inputs
from slipstream.staleness.hot_rows import HOT_BYTES, SAMPLE_SHARE, check_hot_bytes
from slipstream.staleness.own_past import Losses

OrderName = Literal["cold_then_hot", "interleaved"]


class OrderConfig(PolicyBaseConfig):
    """Order alone."""

    name: Literal["order"] = "order"
    order: OrderName = "cold_then_hot"
    """``cold_then_hot``: all cold inputs, then all hot ones. ``interleaved``: in turn."""
    hot_bytes: Annotated[int, AfterValidator(check_hot_bytes)] = HOT_BYTES
    """Memory of the hot rows, bytes."""
    sample_share: Annotated[float, AfterValidator(share_in_range("sample_share"))] = SAMPLE_SHARE
    """Share of the inputs whose accesses are counted; in (0, 1]."""
    runs: int = Field(default=10, ge=1)
    """Of ``interleaved``: runs of cold and of hot inputs in an epoch."""


class Order(Policy):
    """Trains on all inputs, those that look up hot rows only apart from the others.

    FAE (VLDB 2022): the released code trains all cold, then all hot inputs, each epoch [code]; the article interleaves
    them [paper]. Its scheduler chooses the rate from the test loss; here the runs are of fixed number and equal
    length, whole batches each [ours]. Without host and accelerator memory between which rows would move, the order is
    all there is of it. Inputs keep their order in time within hot and cold. [ours]

    Args:
        order: ``cold_then_hot`` or ``interleaved``.
        hot_bytes: Memory of the hot rows, bytes, above 0 and at most the machine's.
        sample_share: Share of the inputs whose accesses are counted; in (0, 1].
        runs: Runs of cold and of hot inputs, 1 or more.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "order"
    plans_order = True

    def __init__(
        self,
        order: OrderName = "cold_then_hot",
        *,
        hot_bytes: int = HOT_BYTES,
        sample_share: float = SAMPLE_SHARE,
        runs: int = 10,
    ) -> None:
        self.config = validated(
            OrderConfig, {"order": order, "hot_bytes": hot_bytes, "sample_share": sample_share, "runs": runs}
        )
        self._tables: Mapping[str, Gated] = {}
        self._model: nn.Module | None = None
        self._seed = 0
        self._report: dict[str, float] = {}

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Keeps the tables for :meth:`plan`."""
        self._tables, self._seed = tables, seed

    def attach_model(self, model: nn.Module, losses: Losses) -> None:
        """Keeps the model for :meth:`plan`."""
        self._model = model

    def plan(self, data: TrainingData) -> Tensor:
        """The order.

        Raises:
            ConfigError: The tables do not fit the inputs, or the budget holds no row.
        """
        config = self.config
        split = split_inputs(
            self.name,
            data,
            self._tables,
            self._model,
            hot_bytes=config.hot_bytes,
            sample_share=config.sample_share,
            seed=self._seed,
        )
        self._report = split.report
        if config.order == "interleaved":
            return interleave(split.cold, split.hot, config.runs, data.batch_size)
        return torch.cat([split.cold, split.hot])

    def report(self) -> dict[str, Any]:
        """Order and shares of rows and inputs that are hot."""
        return {"order": self.config.order, **self._report}
