"""Slipstream: drops hot inputs whose rows no longer move.

Reproduces "Slipstream" (arXiv 2404.04270) from the article's abstract [paper] and the authors' code [code], and offers
a form for streams [ours].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from slipstream.data.batch import Batch
from slipstream.errors import ConfigError
from slipstream.policies.base import Gated, Policy, PolicyBaseConfig, TrainingData, share_in_range, validated
from slipstream.policies.slipstream_once import Once
from slipstream.policies.slipstream_periodic import Periodic
from slipstream.staleness import TailInputs, stale_inputs
from slipstream.staleness.hot_rows import HOT_BYTES, SAMPLE_SHARE, check_hot_bytes
from slipstream.staleness.own_past import Losses

Mode = Literal["once", "periodic"]


class SlipstreamConfig(PolicyBaseConfig):
    """Slipstream."""

    name: Literal["slipstream"] = "slipstream"
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] = 0.7
    """Share of the hot inputs that is kept once rows are known to be stale, 1 - D; 1 drops nothing."""
    band: float = Field(default=0.08, gt=0.0, lt=0.5)
    """T is accepted when it drops D ± band of the sampled inputs."""
    mode: Mode = "once"
    """``once``, as published, or ``periodic``, for streams."""
    hot_bytes: Annotated[int, AfterValidator(check_hot_bytes)] = HOT_BYTES
    """Memory of the hot rows, bytes."""
    alpha: int | None = Field(default=None, ge=1)
    """Stale lookups from which on an input is dropped; None: all (where ``alpha_per_bag`` is None too)."""
    alpha_per_bag: int | None = Field(default=None, ge=1)
    """Stale lookups that each bag must have for an input to be dropped."""
    sample_share: Annotated[float, AfterValidator(share_in_range("sample_share"))] = SAMPLE_SHARE
    """once: share of the inputs whose accesses are counted."""
    snapshot_start: int = Field(default=1000, ge=0)
    """once: S, the hot batches trained before the first snapshot."""
    snapshot_share: Annotated[float, AfterValidator(share_in_range("snapshot_share"))] = 0.03
    """once: m, share of the hot batches between the two snapshots."""
    sample_rate: Annotated[float, AfterValidator(share_in_range("sample_rate"))] = 0.01
    """once: share of the hot inputs on which T is found."""
    every: int = Field(default=1000, ge=2)
    """periodic: batches from one decision to the next."""
    window: int = Field(default=100, ge=1)
    """periodic: batches between the two snapshots, in which nothing is dropped."""
    sample_size: int = Field(default=4096, ge=1)
    """periodic: hot inputs of the window on which T is found."""
    half_life: float | None = Field(default=10_000.0, gt=0.0, allow_inf_nan=False)
    """periodic: batches after which an access counts half; None: accesses never fade."""
    decisions: int | None = Field(default=None, ge=1)
    """periodic: decisions after which the last one stays; None: there is always a next one."""
    protect_tail: int = Field(default=0, ge=0, le=255)
    """Inputs with a row looked up fewer than this many times are never dropped; 0 (as published) protects none."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.budget < 1 and not self.band < self.budget < 1 - self.band:
            raise ValueError(
                f"the share dropped, {1 - self.budget:.3g} ± {self.band}, must lie in (0, 1): budget must be in "
                f"({self.band}, {1 - self.band:.3g}), or 1 to drop nothing, got {self.budget}; or choose a smaller band"
            )
        if self.mode == "periodic" and self.window >= self.every:
            raise ValueError(f"window must be in [1, {self.every - 1}], below every, got {self.window}")
        return self


class Slipstream(Policy):
    """Drops hot inputs most of whose rows stopped moving: sample dropping, without reweighting.

    ``once`` [paper, code]: all cold inputs first, then the hot ones; hot rows are copied after S and after
    E = S + round(m · hot batches) hot batches; a row is stale when it moved by less than T in every dimension; T is
    found by bisection so that D ± band of a sample of the hot inputs not yet trained would be dropped; from then on
    hot inputs with at least ``alpha`` stale lookups are dropped. If the band is never met nothing is dropped. Decided
    in the first epoch; later epochs drop the same inputs [ours]. A batch that holds cold and hot inputs counts as cold
    [ours]. Needs :meth:`plan`, and batches in the order that it returns.

    ``periodic`` [ours]: for streams, in the data's own order. Every ``every`` batches the hot rows are chosen anew by
    (fading) access counts and copied; ``window`` batches later T is found on a sample of the hot inputs that came in
    between; inputs are dropped until the next decision, when all rows are open again. The first ``every`` batches are
    all trained.

    Known weaknesses, kept as they are: biased, as no kept input weighs more for a dropped one; a row that the window
    did not touch looks converged; displacement scales with the learning rate; cold inputs are never dropped.

    Args:
        budget: 1 - D, the share of hot inputs kept after a decision; in (band, 1 - band), or 1.
        band: Half width of the band around D.
        mode: ``once`` or ``periodic``.
        hot_bytes: Memory of the hot rows, bytes, above 0 and at most the machine's.
        alpha: Stale lookups from which on an input is dropped, at most an input's lookups; None: all.
        alpha_per_bag: Stale lookups that each bag must have; None: bags count like columns.
        sample_share: once: share of the inputs whose accesses are counted; in (0, 1].
        snapshot_start: once: S, in hot batches.
        snapshot_share: once: m; in (0, 1].
        sample_rate: once: share of the hot inputs on which T is found; in (0, 1].
        every: periodic: batches between decisions.
        window: periodic: batches between snapshots, below ``every``.
        sample_size: periodic: inputs on which T is found.
        half_life: periodic: batches after which an access counts half; None: exact counts.
        decisions: periodic: decisions after which the last one stays; None: no end.
        protect_tail: Lookups below which no input of a row is dropped, 0 to 255.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "slipstream"
    skips_inputs = True

    def __init__(
        self,
        budget: float = 0.7,
        *,
        band: float = 0.08,
        mode: Mode = "once",
        hot_bytes: int = HOT_BYTES,
        alpha: int | None = None,
        alpha_per_bag: int | None = None,
        sample_share: float = SAMPLE_SHARE,
        snapshot_start: int = 1000,
        snapshot_share: float = 0.03,
        sample_rate: float = 0.01,
        every: int = 1000,
        window: int = 100,
        sample_size: int = 4096,
        half_life: float | None = 10_000.0,
        decisions: int | None = None,
        protect_tail: int = 0,
    ) -> None:
        self.config = validated(
            SlipstreamConfig,
            {
                "budget": budget,
                "band": band,
                "mode": mode,
                "hot_bytes": hot_bytes,
                "alpha": alpha,
                "alpha_per_bag": alpha_per_bag,
                "sample_share": sample_share,
                "snapshot_start": snapshot_start,
                "snapshot_share": snapshot_share,
                "sample_rate": sample_rate,
                "every": every,
                "window": window,
                "sample_size": sample_size,
                "half_life": half_life,
                "decisions": decisions,
                "protect_tail": protect_tail,
            },
        )
        self._tail = TailInputs(protect_tail) if protect_tail else None
        self.plans_order = mode == "once"
        self._course: Once | Periodic = Once(self.config) if mode == "once" else Periodic(self.config)

    def warm_up(self) -> None:
        """Loads the counting, the classifier and the displacement."""
        stale_inputs.load()
        if self._tail is not None:
            self._tail.warm_up()
        self._course.warm_up()

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Keeps the tables."""
        self._course.attach(tables, seed)

    def attach_model(self, model: nn.Module, losses: Losses) -> None:
        """Keeps the model: it tells which table each column is looked up in."""
        self._course.model = model

    def check_length(self, batches: int) -> None:
        """periodic: the first decision must come before the training ends."""
        config = self.config
        first = config.every + config.window
        if config.mode == "periodic" and first >= batches:
            most = batches - config.window - 1
            raise ConfigError(
                f"policy 'slipstream': every={config.every} and window={config.window} leave no decision in a training "
                f"of {batches} batches",
                remedy=f"set every in [{config.window + 1}, {most}]"
                if most > config.window
                else "set window and every lower, or use more samples",
            )

    def plan(self, data: TrainingData) -> Tensor | None:
        """once: cold inputs, then hot ones. periodic: None.

        Raises:
            ConfigError: The tables do not fit the inputs, the budget holds no row, there are too few hot inputs for the
                snapshots, or ``alpha`` is above the lookups of an input.
        """
        return self._course.plan(data)

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """0 for inputs to drop, 1 for the others; None while all are kept."""
        dropped = self._course.dropped(batch.inputs)
        if self._tail is not None:
            rare = self._tail.pass_by(batch.inputs)
            dropped = None if dropped is None else dropped & ~rare
        return None if dropped is None else (~dropped).float()

    def set_budget(self, budget: float) -> None:
        """Changes the share that is kept, from the next decision on (once: if it is still to come)."""
        self.config = validated(SlipstreamConfig, self.config.model_dump() | {"budget": budget})
        self._course.config = self.config

    def state_dict(self) -> dict[str, Any]:
        """Position, snapshot, threshold; once: the sample; periodic: counts."""
        tail = {} if self._tail is None else {"tail": self._tail.state_dict()}
        return {"mode": self.config.mode, **tail, **self._course.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of another mode or of other tables.
        """
        self._course.load_state_dict(state)
        if self._tail is not None and "tail" in state:
            self._tail.load_state_dict(state["tail"])

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """periodic: goes on, counts of the tail too. once: a plan is of its own data, so all is decided anew."""
        self._course.continue_from(state, rows)
        if self._tail is not None and self.config.mode == "periodic" and "tail" in state:
            self._tail.load_state_dict(state["tail"])

    def report(self) -> dict[str, Any]:
        """Settings, hot rows and inputs, and of the last decision T, the share it drops and the stale rows."""
        return {"mode": self.config.mode, "budget": self.config.budget, **self._course.report()}
