"""Order alone: hot and cold inputs apart, nothing skipped. FAE's two orders, and the control of Slipstream."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from slipstream.errors import ConfigError
from slipstream.policies.base import Gated, Policy, PolicyBaseConfig, TrainingData, share_in_range, validated
from slipstream.policies.fae_schedule import Rate, Runs, without
from slipstream.policies.hot_split import interleave, split_inputs
from slipstream.restored import copy_into
from slipstream.staleness.hot_rows import HOT_BYTES, SAMPLE_SHARE, check_hot_bytes
from slipstream.staleness.own_past import Losses

OrderName = Literal["cold_then_hot", "interleaved", "adaptive"]
_STREAM = 0xFAE7
"""Mixed into the seed of the test samples."""


class OrderConfig(PolicyBaseConfig):
    """Order alone."""

    name: Literal["order"] = "order"
    order: OrderName = "cold_then_hot"
    """``cold_then_hot``: all cold inputs, then all hot ones. ``interleaved``: in turn. ``adaptive``: in turn, in runs
    whose length follows the test loss."""
    hot_bytes: Annotated[int, AfterValidator(check_hot_bytes)] = HOT_BYTES
    """Memory of the hot rows, bytes."""
    sample_share: Annotated[float, AfterValidator(share_in_range("sample_share"))] = SAMPLE_SHARE
    """Share of the inputs whose accesses are counted; in (0, 1]."""
    runs: int = Field(default=10, ge=1)
    """Of ``interleaved``: runs of cold and of hot inputs in an epoch."""
    rate: Annotated[float, AfterValidator(share_in_range("rate"))] = 0.5
    """Of ``adaptive``: share of the cold (and of the hot) inputs in the first runs."""
    patience: int = Field(default=4, ge=1)
    """Of ``adaptive``: transitions without a rise of the test loss after which runs get longer."""
    test_samples: int = Field(default=4096, ge=1)
    """Of ``adaptive``: inputs drawn for the test loss, and left out of training."""


class Order(Policy):
    """Trains on all inputs, those that look up hot rows only apart from the others.

    FAE (VLDB 2022): the released code trains all cold, then all hot inputs, each epoch [code]; the article interleaves
    them, its scheduler choosing the length of the runs from the test loss [paper]: ``adaptive``, see
    :mod:`slipstream.policies.fae_schedule`. ``interleaved`` has runs of fixed number and equal length, whole batches
    each [ours]. Without host and accelerator memory between which rows would move, the order is all there is of it.
    Inputs keep their order in time within hot and cold. [ours]

    The test loss is that of inputs drawn at random from the training samples, which are not trained on: the samples
    that score the training must not steer it. [ours] ``adaptive`` needs a training that asks for its runs, as
    ``slipstream.training`` does.

    Args:
        order: ``cold_then_hot`` or ``interleaved``.
        hot_bytes: Memory of the hot rows, bytes, above 0 and at most the machine's.
        sample_share: Share of the inputs whose accesses are counted; in (0, 1].
        runs: ``interleaved``: runs of cold and of hot inputs, from 1 to the batches of an epoch.
        rate: ``adaptive``: share of the inputs of a kind in the first runs, in (0, 1].
        patience: ``adaptive``: transitions without a rise before runs get longer, 1 or more.
        test_samples: ``adaptive``: inputs left out for the test loss, at least 1 and fewer than there are.

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
        rate: float = 0.5,
        patience: int = 4,
        test_samples: int = 4096,
    ) -> None:
        self.config = validated(
            OrderConfig,
            {
                "order": order,
                "hot_bytes": hot_bytes,
                "sample_share": sample_share,
                "runs": runs,
                "rate": rate,
                "patience": patience,
                "test_samples": test_samples,
            },
        )
        self.plans_runs = order == "adaptive"
        self._runs: Runs | None = None
        self._tested = torch.empty(0, dtype=torch.int64)
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

    def plan(self, data: TrainingData) -> Tensor | None:
        """The order; None if it is decided run by run.

        Raises:
            ConfigError: The tables do not fit the inputs, the budget holds no row, or there are too few inputs.
        """
        config = self.config
        batches = -(-data.num_samples // data.batch_size)
        if config.order == "interleaved" and config.runs > batches:
            raise ConfigError(
                f"policy 'order': runs must be in [1, {batches}], the batches of an epoch, got {config.runs}"
            )
        if self.plans_runs and config.test_samples >= data.num_samples:
            most = data.num_samples - 1
            raise ConfigError(f"policy 'order': test_samples must be in [1, {most}], got {config.test_samples}")
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
        if not self.plans_runs:
            return torch.cat([split.cold, split.hot])
        drawn = np.random.default_rng((self._seed, _STREAM)).choice(
            data.num_samples, config.test_samples, replace=False
        )
        self._tested = torch.from_numpy(np.sort(drawn))
        cold, hot = (without(kind, self._tested) for kind in (split.cold, split.hot))
        self._runs = Runs(cold, hot, data.batch_size, Rate(config.rate, config.patience))
        return None

    def test_positions(self) -> Tensor:
        """The inputs left out, int64."""
        return self._tested

    def next_run(self, test_loss: float) -> Tensor | None:
        """The next run of cold or of hot inputs."""
        return None if self._runs is None else self._runs.next(test_loss)

    def state_dict(self) -> dict[str, Any]:
        """The runs, if they are decided one by one."""
        return {} if self._runs is None else {"runs": self._runs.state_dict(), "tested": self._tested}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state taken between two runs, after :meth:`plan`."""
        if "runs" in state and self._runs is not None:
            self._runs.load_state_dict(state["runs"])
            copy_into(self._tested, state["tested"], "tested inputs")

    def report(self) -> dict[str, Any]:
        """Order, shares of rows and inputs that are hot, and of ``adaptive`` the runs and how long they are now."""
        report: dict[str, Any] = {"order": self.config.order, **self._report}
        if self._runs is not None:
            report |= {"runs": self._runs.handed_out, "rate": self._runs.rate.share}
        return report
