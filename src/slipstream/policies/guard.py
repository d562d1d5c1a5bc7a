"""Guard: finds while training runs how much may be skipped within a tolerance, and backs off when it breaks. [ours].

Losses of chunks differ by far more than any tolerance worth having, so both of its measurements are paired:

*What skipping costs.* Scouts (on-line logistic regressions) predict every input; one learns from all, each of the
others from a random share, one share for each rung of a ladder. The difference of their losses on the same inputs says
what skipping costs on this data. The real model has more to learn than a linear one: a safety factor multiplies it, and
the model's share of explained loss over the scout's. Where the scout explains nothing, or learns better from less, it
is no witness, and nothing is skipped.

*What the model says.* Some chunks are not skipped. On these the model's loss before training on them is divided by
that of the full scout on the same inputs, a yardstick that no skipping touches. When the quotient has risen against its
level before the last rise of the skip rate by more than the tolerance, beyond its noise, the guard takes a rung back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.policies.base import Gated, Policy, PolicyBaseConfig, Progress, TrainingData, validated
from slipstream.policies.importance import Importance
from slipstream.policies.random import Random
from slipstream.staleness.surprise import Scout, log_losses

if TYPE_CHECKING:
    from slipstream.data.batch import Batch

Inner = Literal["random", "importance"]
LADDER = (1.0, 0.9, 0.75, 0.5, 0.35, 0.25)
"""Budgets that the guard chooses from."""
_LEAST_WITNESS = 0.1
"""Share of what the model explains that the scout must explain."""
_FORGET = 0.9
"""What a chunk's measurement counts for one chunk later."""


class GuardConfig(PolicyBaseConfig):
    """Guard."""

    name: Literal["guard"] = "guard"
    policy: Inner = "random"
    """What skips the inputs."""
    tolerance: float = Field(default=0.001, gt=0.0, lt=1.0)
    """Relative rise of the log-loss that is accepted."""
    chunk: int = Field(default=16_384, ge=256)
    """Inputs between two looks."""
    open_every: int = Field(default=8, ge=2)
    """One chunk in so many is not skipped."""
    warmup_chunks: int = Field(default=6, ge=2)
    """Chunks before the first rise of the skip rate."""
    safety: float = Field(default=2.0, ge=1.0, allow_inf_nan=False)
    """Factor on what skipping costs the scouts."""
    bits: int = Field(default=18, ge=8, le=28)
    """Each scout has ``2^bits`` slots of 16 bytes."""


class _Running:
    """Mean and its standard error of paired measurements that fade."""

    def __init__(self) -> None:
        self.weight = self.squares = self.mean = self.spread = 0.0

    def add(self, value: float) -> None:
        self.weight, self.squares = _FORGET * self.weight + 1.0, _FORGET**2 * self.squares + 1.0
        step = value - self.mean
        self.mean += step / self.weight
        self.spread = (1.0 - 1.0 / self.weight) * (self.spread + step * step / self.weight)

    def error(self) -> float:
        effective = self.weight**2 / self.squares if self.squares else 0.0
        return math.sqrt(self.spread / (effective - 1.0)) if effective > 1.5 else math.inf

    def state(self) -> list[float]:
        return [self.weight, self.squares, self.mean, self.spread]

    def load(self, state: list[float]) -> None:
        self.weight, self.squares, self.mean, self.spread = state


class Guard(Policy):
    """Chooses the budget of ``random`` or ``importance`` so that the log-loss stays near that of full training.

    It begins with no skipping, moves one rung at a time, and logs each move. The cost is measured with random skipping;
    an inner policy that does better than random keeps the difference as a margin. What it promises is statistical: the
    scouts stand for the model, and what was lost before it backs off is lost. Needs binary labels, a loss of single
    samples, and ``Skipper.observe`` in a loop of one's own.

    Args:
        policy: ``random`` or ``importance``.
        tolerance: Relative rise of the log-loss that is accepted, in (0, 1).
        chunk: Inputs between two looks.
        open_every: One chunk in so many is not skipped.
        warmup_chunks: Chunks before the first rise of the skip rate.
        safety: Factor on what skipping costs the scouts, 1 or more.
        bits: Each scout has ``2^bits`` slots.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "guard"
    skips_inputs = True
    wants_losses = True

    def __init__(
        self,
        policy: Inner = "random",
        *,
        tolerance: float = 0.001,
        chunk: int = 16_384,
        open_every: int = 8,
        warmup_chunks: int = 6,
        safety: float = 2.0,
        bits: int = 18,
    ) -> None:
        self.config = validated(
            GuardConfig,
            {
                "policy": policy,
                "tolerance": tolerance,
                "chunk": chunk,
                "open_every": open_every,
                "warmup_chunks": warmup_chunks,
                "safety": safety,
                "bits": bits,
            },
        )
        self._inner: Policy = Random(1.0) if policy == "random" else Importance(1.0)
        self._scouts = [Scout(bits=bits) for _ in LADDER]
        self._costs = [_Running() for _ in LADDER]
        self._sums = [0.0] * len(LADDER)
        self._quotients = _Running()
        self._reference: float | None = None  # the quotient's level before the last rise of the skip rate
        self._rung = self._in_chunk = self._chunks = self._samples = self._barred = 0
        self._open_index: list[Tensor] = []
        self._open_loss: list[Tensor] = []
        self._model_loss = self._scout_loss = self._observed = 0.0
        self._labels = 0.0  # sum of all labels
        self._scale = math.inf  # how much more the model explains than the full scout
        self._last_rise = 0
        self._moves: list[dict[str, Any]] = []
        self._draws = torch.Generator()

    @property
    def budget(self) -> float:
        """Share of the inputs that is kept now."""
        return LADDER[self._rung]

    def warm_up(self) -> None:
        """Loads the scouts and the inner policy."""
        Importance().warm_up()

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Seeds the scouts' shares."""
        self._draws.manual_seed(seed)
        self._inner.attach(tables, seed=seed)

    def plan(self, data: TrainingData) -> Tensor | None:
        """The inner policy's."""
        return self._inner.plan(data)

    def update_gates(self, progress: Progress) -> None:
        """The inner policy's."""
        self._inner.update_gates(progress)

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """Lets the scouts measure, looks at the end of each chunk, and asks the inner policy."""
        size = len(batch)
        if size:
            self._measure(batch)
        keep = None if self._chunks % self.config.open_every == 0 else self._inner.keep_probability(batch)
        self._in_chunk += size
        self._samples += size
        if self._in_chunk >= self.config.chunk:
            self._look()
        return keep

    def _measure(self, batch: Batch) -> None:
        inputs = batch.inputs
        bags = [(bag.values, bag.offsets) for bag in inputs.bags]
        draw = torch.rand(len(batch), generator=self._draws)
        self._labels += float(batch.labels.sum())
        for rung, (scout, budget) in enumerate(zip(self._scouts, LADDER, strict=True)):
            before = scout.loss
            # The same draws for all: what a smaller share keeps, a larger one keeps too.
            predicted, _ = scout.predict_and_learn(inputs.ids, bags, inputs.dense, batch.labels, draw < budget)
            self._sums[rung] += scout.loss - before
            if rung == 0 and self._chunks % self.config.open_every == 0:
                self._open_index.append(batch.index)
                self._open_loss.append(log_losses(predicted, batch.labels))

    def observe_losses(self, batch: Batch, losses: Tensor) -> None:
        """Sets the model's losses on inputs of open chunks against the full scout's."""
        if not self._open_index:
            return
        index, order = torch.cat(self._open_index).sort()
        place = torch.searchsorted(index, batch.index).clamp_(max=index.numel() - 1)
        found = index[place] == batch.index
        self._observed += int(found.sum())
        self._model_loss += float(losses[found].sum())
        self._scout_loss += float(torch.cat(self._open_loss)[order[place[found]]].sum())

    def _look(self) -> None:
        full = self._sums[0]
        for cost, total in zip(self._costs, self._sums, strict=True):
            cost.add(total / full - 1.0 if full > 0.0 else 0.0)
        if self._scout_loss > 0.0 and self._chunks % self.config.open_every != 0:
            # The chunk after an open one: by now the model has trained on what was open.
            self._quotients.add(self._model_loss / self._scout_loss)
            self._scale = self._explained_more()
            self._model_loss = self._scout_loss = self._observed = 0.0
            self._open_index, self._open_loss = [], []
            self._veto()
        self._sums = [0.0] * len(LADDER)
        self._chunks, self._in_chunk = self._chunks + 1, 0
        self._decide()

    def _explained_more(self) -> float:
        """What the model explains of the entropy ÷ what the full scout does, at least 1; inf if that is little."""
        rate = min(max(self._labels / max(self._samples, 1), 1e-6), 1.0 - 1e-6)
        entropy = -self._observed * (rate * math.log(rate) + (1.0 - rate) * math.log(1.0 - rate))
        by_scout, by_model = entropy - self._scout_loss, entropy - self._model_loss
        if by_scout <= max(_LEAST_WITNESS * by_model, 0.0):
            return math.inf
        return max(by_model / by_scout, 1.0)

    def _veto(self) -> None:
        if self._reference is None or self._rung == 0:
            return
        rise = self._quotients.mean / self._reference - 1.0
        noise = 2.0 * self._quotients.error() / self._reference
        if math.isfinite(noise) and rise - noise > self.config.tolerance:
            self._barred = self._chunks + 4 * self.config.open_every
            self._move(self._rung - 1, rise, rise - noise, "the model's loss rose")

    def _decide(self) -> None:
        if self._chunks < self.config.warmup_chunks:
            return
        bounds = [self._bound(rung) for rung in range(len(LADDER))]
        within = [rung for rung, bound in enumerate(bounds) if bound <= self.config.tolerance]
        wanted = max(within)  # rung 0 costs nothing
        if wanted < self._rung:
            self._move(wanted, self._costs[self._rung].mean, bounds[self._rung], "the scouts' cost broke the tolerance")
        elif wanted > self._rung and self._chunks >= max(self._barred, self._last_rise + 2 * self.config.open_every):
            self._last_rise = self._chunks
            self._reference = self._quotients.mean if self._quotients.weight else None
            rung = self._rung + 1
            self._move(rung, self._costs[rung].mean, bounds[rung], "the scouts' cost is within the tolerance")

    def _bound(self, rung: int) -> float:
        """Upper bound of a rung's relative cost, with the safety factor; 0 for no skipping, inf without a witness."""
        cost, noise = self._costs[rung], 2.0 * self._costs[rung].error()
        if rung == 0:
            return 0.0
        if cost.mean < -noise:
            return math.inf
        return self._scale * self.config.safety * (max(cost.mean, 0.0) + noise)

    def _move(self, rung: int, estimate: float, bound: float, reason: str) -> None:
        self._rung = rung
        self._inner.set_budget(self.budget)
        self._moves.append(
            {"samples": self._samples, "budget": self.budget, "estimate": estimate, "bound": bound, "reason": reason}
        )

    def state_dict(self) -> dict[str, Any]:
        """Scouts, measurements, the rung and the log."""
        return {
            "scouts": [scout.state_dict() for scout in self._scouts],
            "costs": [cost.state() for cost in self._costs],
            "sums": list(self._sums),
            "quotients": self._quotients.state(),
            "reference": self._reference,
            "counters": [
                self._rung,
                self._in_chunk,
                self._chunks,
                self._samples,
                self._barred,
                self._last_rise,
            ],
            "open_index": list(self._open_index),
            "open_loss": list(self._open_loss),
            "losses": [self._model_loss, self._scout_loss, self._observed, self._labels, self._scale],
            "moves": [dict(move) for move in self._moves],
            "draws": self._draws.get_state(),
            "inner": self._inner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of another ladder.
        """
        if len(state["scouts"]) != len(LADDER):
            raise ConfigError(f"the guard's state has {len(state['scouts'])} rungs, this version has {len(LADDER)}")
        for scout, saved in zip(self._scouts, state["scouts"], strict=True):
            scout.load_state_dict(saved)
        for cost, saved in zip(self._costs, state["costs"], strict=True):
            cost.load(saved)
        self._sums, self._reference = list(state["sums"]), state["reference"]
        self._quotients.load(state["quotients"])
        self._rung, self._in_chunk, self._chunks, self._samples, self._barred, self._last_rise = state["counters"]
        self._open_index, self._open_loss = list(state["open_index"]), list(state["open_loss"])
        self._model_loss, self._scout_loss, self._observed, self._labels, self._scale = state["losses"]
        self._moves = [dict(move) for move in state["moves"]]
        self._draws.set_state(state["draws"])
        self._inner.set_budget(self.budget)
        self._inner.load_state_dict(state["inner"])

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """Scouts, measurements and the rung go on; what was open in the earlier data is not compared any more."""
        self.load_state_dict({**state, "open_index": [], "open_loss": []})
        self._model_loss = self._scout_loss = self._observed = 0.0
        self._inner.continue_from(state["inner"], rows)

    def report(self) -> dict[str, Any]:
        """The budget now, each move, and the estimated relative cost of each rung."""
        return {
            "policy": self.config.policy,
            "tolerance": self.config.tolerance,
            "budget": self.budget,
            "moves": [dict(move) for move in self._moves],
            "model_explains_more_by": self._scale if math.isfinite(self._scale) else None,
            "scouts_cost": {str(budget): cost.mean for budget, cost in zip(LADDER, self._costs, strict=True)},
        }
