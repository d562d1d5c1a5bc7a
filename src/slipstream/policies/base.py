"""What a policy is: a base class whose methods do nothing, so that each policy writes only what it decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from slipstream.errors import ConfigError, first_problem

if TYPE_CHECKING:
    from slipstream.data.batch import Batch
    from slipstream.staleness.own_past import Losses

OPEN, FROZEN = 255, 0
"""Gate values: a row that every step updates, and one that none does. Between them g: with probability g / 256 a
step."""


class Gated(Protocol):
    """What policies use of an ``embedding.Table``."""

    @property
    def num_rows(self) -> int:
        """R."""
        ...

    @property
    def weight(self) -> Tensor:
        """float32 [R, D]; policies read it (snapshots) and never write it."""
        ...

    @property
    def gate(self) -> Tensor | None:
        """uint8 [R], or None while every row is open."""
        ...

    @property
    def lookups(self) -> int:
        """Row lookups that optimizer steps consumed."""
        ...

    @property
    def skipped(self) -> int:
        """Those of them whose update was skipped."""
        ...

    @property
    def listeners(self) -> list[Callable[[Any, Tensor], None]]:
        """Called in every backward pass with (table, ids), gated rows included."""
        ...

    def open_gate(self) -> Tensor:
        """The gate, made (all rows open) if there is none yet."""
        ...


class Progress(NamedTuple):
    """How far a training has come when a batch is about to be handed out."""

    step: int
    """Batches handed out before this one."""
    samples: int
    """Samples in those batches."""
    time: int | None
    """Unix seconds of this batch's last sample, of its median for a policy that follows time, or None when the data has
    no time."""
    share: float | None = None
    """Share of the training that has passed, in [0, 1], or None when its length is not known."""
    epoch: int = 0
    """Epochs of this training finished."""


class TrainingData(Protocol):
    """What a policy may read of the data before training, where the data can be read at will (no stream)."""

    @property
    def num_samples(self) -> int:
        """N, the training samples of one epoch."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples of a step."""
        ...

    def take(self, positions: Tensor) -> Batch:
        """The samples at ``positions`` (int64 [K], 0 … N − 1, any order)."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All of them, in order, in pieces of ``batch_size``."""
        ...


class PolicyBaseConfig(BaseModel):
    """Base of the policies' configurations; ``name`` tells them apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ConfigT = TypeVar("ConfigT", bound=PolicyBaseConfig)


def validated(config: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """A configuration from plain values.

    Raises:
        ConfigError: A value is out of range or unknown; says which, and the range that is allowed.
    """
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        name = str(config.model_fields["name"].default)
        raise ConfigError(f"policy {name!r}: {first_problem(error)}") from error


def share_in_range(name: str) -> Callable[[float], float]:
    """A check that a share is in (0, 1]."""

    def check(value: float) -> float:
        if not 0.0 < value <= 1.0:
            raise ValueError(f"{name} must be in (0, 1], got {value}")
        return value

    return check


class Policy:
    """Decides which inputs and which row updates a training skips.

    Subclasses say by ``skips_inputs`` and ``skips_rows`` what they do and override the methods they need: input
    policies :meth:`keep_probability`, row policies :meth:`update_gates` and, if they watch the lookups,
    :meth:`observe_lookups`. A policy serves one training.
    """

    name: ClassVar[str] = ""
    """Its name in configurations and reports."""
    skips_inputs: bool = False
    """Whether ``keep_probability`` may leave inputs out."""
    skips_rows: bool = False
    """Whether it sets gates."""
    plans_order: bool = False
    """Whether ``plan`` gives an order: refuses streams and shuffling."""
    plans_runs: bool = False
    """Whether it orders the samples run by run, by :meth:`test_positions` and :meth:`next_run`."""
    wants_losses: bool = False
    """Whether ``observe_losses`` is to be called."""
    follows_time: bool = False
    """Whether it goes by the samples' time, in whose order they must come: refuses shuffling."""
    decides_alone: bool = False
    """Whether ``keep_probability`` depends on nothing but the batches given to it, not on the model's steps: a training
    with small batches then has it decide on several at a time."""

    chooses_by_label: bool = False
    """Whether an input's probability depends on its label, and :meth:`logit_offset` says how."""

    def warm_up(self) -> None:
        """Compiles, or loads from the cache, what a training will need, so that no step has to wait for it."""

    def plan(self, data: TrainingData) -> Tensor | None:
        """Called once before training, after :meth:`attach`, where the data can be read at will.

        Args:
            data: The training samples.

        Returns:
            int64 [N]: the order of the samples in each epoch, each position 0 … N − 1 once, or None to leave it. It
            leaves no sample out: :meth:`keep_probability` of 0 does, or :meth:`next_run`. A training refuses another
            answer (ConfigError) before its first step.
        """
        return None

    def check_length(self, batches: int) -> None:
        """Called before a training whose length is known: does it come to what the policy is for?

        Args:
            batches: Batches of the data in all epochs.

        Raises:
            ConfigError: It ends before the policy decides for the first time; says the range that is allowed.
        """

    def test_positions(self) -> Tensor:
        """Samples on whose loss the runs depend, int64 [K]; none of them is trained on. If ``plans_runs``."""
        return torch.empty(0, dtype=torch.int64)

    def next_run(self, test_loss: float) -> Tensor | None:
        """The samples to train on next. If ``plans_runs``; a training may be saved within a run, which it keeps.

        Args:
            test_loss: The model's mean loss on the test samples now.

        Returns:
            int64: their positions, in order; None at the end of an epoch.
        """
        return None

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Called once, before the first batch.

        Args:
            tables: The model's tables by parameter name; empty when the model has none of ours.
            seed: Seed of everything the policy draws.
        """

    def attach_model(self, model: nn.Module, losses: Losses) -> None:
        """Called once, after :meth:`attach`, with the whole model; most policies need their tables alone.

        Args:
            model: The model, to read and to copy, never to write.
            losses: The loss of each sample of a batch under the model or a copy of it.
        """

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """The probability with which each input is kept.

        Called once for each batch of the full data, in order, so that a policy may learn from what passes.

        Args:
            batch: B inputs.

        Returns:
            float32 [B] in [0, 1], or None to keep all. Kept inputs weigh 1/p, times one factor that keeps the
            mean weight at about 1; p = 0 drops an input for good, and no other input weighs more for it.
        """
        return None

    def logit_offset(self, batch: Batch) -> Tensor:
        """What the last :meth:`keep_probability` made of each input's odds, for trainings that add it to the logits.

        Called after it, for the same batch, in place of weights 1/p, if ``chooses_by_label``.

        Args:
            batch: B inputs, as given to :meth:`keep_probability`.

        Returns:
            float32 [B]: log of the probability to be kept with the label 1 over that with the label 0, the rest of the
            input being as it is.
        """
        raise NotImplementedError(f"policy {self.name!r} says chooses_by_label, and not by how much")

    def observe_lookups(self, table: Gated, ids: Tensor) -> None:
        """Called in each backward pass, for each table.

        Args:
            table: The table.
            ids: int32 or int64, any shape: rows looked up, gated ones included, repeats included.
        """

    def update_gates(self, progress: Progress) -> None:
        """Called before each batch is handed out; the place to re-decide gates."""

    def decides(self, progress: Progress) -> bool:
        """Whether :meth:`update_gates` may set gates at this step, or what it knows must be complete.

        On several ranks lookups are exchanged before such a step; a policy that says so of few steps makes the ranks
        exchange seldom. By default every step, for policies that hear lookups.
        """
        return type(self).observe_lookups is not Policy.observe_lookups

    def observe_losses(self, batch: Batch, losses: Tensor) -> None:
        """Called with the model's loss on each batch that was handed out, before its step, if ``wants_losses``.

        Args:
            batch: B inputs.
            losses: float32 [B], not weighted.
        """

    def take_moves(self) -> list[dict[str, Any]]:
        """What the policy changed by itself since the last call, as plain numbers and texts: events of the training."""
        return []

    def set_budget(self, budget: float) -> None:
        """Changes the share that is kept while training runs (the guard does); from the next batch on.

        Raises:
            ConfigError: The policy has no budget, or it is out of range.
        """
        raise ConfigError(f"policy {self.name!r} has no budget that could change while training runs")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, the gates that the policy decided included: tensors, numbers, dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state, after :meth:`attach`."""

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """Takes over the state of a training on earlier data, after :meth:`attach`.

        Policies with a number for each row override it: tables may have got rows since, appended at their end.

        Args:
            state: As :meth:`state_dict` gave it.
            rows: R of each table now, by parameter name.
        """
        self.load_state_dict(state)

    def report(self) -> dict[str, Any]:
        """Plain numbers that tell what the policy did."""
        return {}
