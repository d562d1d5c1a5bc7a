"""Guard: finds while training runs how much may be skipped within a tolerance, and backs off when it breaks. [ours].

A training that skips cannot see what it would have reached without. What it can see is its own learning curve: how
much worse it was, on inputs that it has not trained on, when it had seen half as much (see
:mod:`slipstream.staleness.own_past`). Training on a random share b of the inputs leaves a model behind full training by
log2(1/b) doublings, so it costs at most log2(1/b) times what the last doubling was worth, given two things: that the
curve flattens (the guard compares each doubling with the one before, and skips nothing while they grow), and that data
which drifts makes an older model worse than a younger one of as many inputs, not better. No second training runs
beside: one batch in a few costs one more forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from slipstream.errors import ConfigError
from slipstream.policies.base import Gated, Policy, PolicyBaseConfig, Progress, TrainingData, validated
from slipstream.policies.guard_evidence import Evidence
from slipstream.policies.importance import Importance
from slipstream.policies.random import Random
from slipstream.restored import finite_number, whole_number
from slipstream.staleness.own_past import Losses

if TYPE_CHECKING:
    from slipstream.data.batch import Batch

Inner = Literal["random", "importance"]
LADDER = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
"""Budgets that the guard chooses from."""
ROOM = 0.8
"""Share of the tolerance that a bound may take where the guard skips more than before; all of it where it stays."""


class GuardConfig(PolicyBaseConfig):
    """Guard."""

    name: Literal["guard"] = "guard"
    policy: Inner = "random"
    """What skips the inputs."""
    tolerance: float | None = Field(default=0.001, gt=0.0, lt=1.0)
    """Relative rise of the log-loss that is accepted, in (0, 1); None: none is promised."""
    auc_tolerance: float | None = Field(default=None, gt=0.0, lt=0.5)
    """Fall of AUC that is accepted, in (0, 0.5); None: none is promised. With both, both must hold."""
    measure_every: int = Field(default=16, ge=1)
    """Batches from one that the earlier copy predicts to the next."""
    first_copy: int = Field(default=8192, ge=1)
    """Inputs trained on before the first copy of the model; the next are taken each time they have doubled."""

    @model_validator(mode="after")
    def _fits(self) -> GuardConfig:
        if self.tolerance is None and self.auc_tolerance is None:
            raise ValueError("tolerance in (0, 1) or auc_tolerance in (0, 0.5) must be set")
        return self


class Guard(Policy):
    """Chooses the budget of ``random`` or ``importance`` so that quality stays near that of full training.

    It begins with no skipping, looks four times in each doubling of the inputs trained on (to skip more at every second
    look, to skip less at any), and logs what it decides, also why it skips nothing: ``report()["moves"]``, and events
    of the training. Where even the gentlest skipping clearly costs too much it measures a quarter as often.

    What it promises is statistical (two standard errors), and what was lost before it backs off is lost: a curve that
    flattens and then steepens, as when a model learns its tables after its dense part, can break a tolerance. A decayed
    learning rate makes it careful: the copy is from before the decay. An inner policy that does better than random
    keeps the difference as a margin. After the first epoch no input is fresh, so nothing is measured and the budget
    stays.

    Needs ``Skipper.observe`` in a loop of one's own, and a loss of single samples; ``auc_tolerance`` needs
    cross-entropy and labels of 0 and 1. Memory: the model's weights once more.

    Args:
        policy: ``random`` or ``importance``.
        tolerance: Relative rise of the log-loss that is accepted, in (0, 1), or None.
        auc_tolerance: Fall of AUC that is accepted, in (0, 0.5), or None.
        measure_every: Batches from one measurement to the next, 1 or more.
        first_copy: Inputs before the first copy, 1 or more.

    Raises:
        ConfigError: A setting is out of range, or there is no tolerance.
    """

    name = "guard"
    skips_inputs = True
    wants_losses = True

    def __init__(
        self,
        policy: Inner = "random",
        *,
        tolerance: float | None = 0.001,
        auc_tolerance: float | None = None,
        measure_every: int = 16,
        first_copy: int = 8192,
    ) -> None:
        self.config = validated(
            GuardConfig,
            {
                "policy": policy,
                "tolerance": tolerance,
                "auc_tolerance": auc_tolerance,
                "measure_every": measure_every,
                "first_copy": first_copy,
            },
        )
        self._inner: Policy = Random(1.0) if policy == "random" else Importance(1.0)
        self._evidence: Evidence | None = None
        self._budget = 1.0
        self._epoch = self._passed = 0
        self._moves: list[dict[str, Any]] = []
        self._told = 0

    @property
    def budget(self) -> float:
        """Share of the inputs that is kept now."""
        return self._budget

    def warm_up(self) -> None:
        """Loads the inner policy."""
        self._inner.warm_up()

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Attaches the inner policy."""
        self._inner.attach(tables, seed=seed)

    def attach_model(self, model: nn.Module, losses: Losses) -> None:
        """Keeps the model, to copy it from time to time."""
        config = self.config
        self._evidence = Evidence(
            model, losses, measure_every=config.measure_every, first_copy=config.first_copy, of_auc=self._of_auc
        )

    @property
    def _of_auc(self) -> bool:
        return self.config.auc_tolerance is not None

    def plan(self, data: TrainingData) -> Tensor | None:
        """The inner policy's."""
        return self._inner.plan(data)

    def update_gates(self, progress: Progress) -> None:
        """The inner policy's."""
        self._epoch = progress.epoch
        self._inner.update_gates(progress)

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """The inner policy's, at the budget of now."""
        self._passed += len(batch)
        return self._inner.keep_probability(batch)

    def observe_losses(self, batch: Batch, losses: Tensor) -> None:
        """Sets the model against its earlier copy on one batch in a few, and decides when it is time.

        Raises:
            ConfigError: The Skipper gave no model, or ``auc_tolerance`` is set and a label is neither 0 nor 1.
        """
        if self._evidence is None:
            raise ConfigError("policy 'guard' was not given the model", remedy="train with a Skipper")
        if self._epoch > 0:
            if self._evidence.open:
                self._evidence.close()
                self._log(self._budget, "the first epoch is over: no input is fresh, the budget stays")
            return
        if self._evidence.observe(batch, losses):
            self._look(self._evidence)

    def _look(self, evidence: Evidence) -> None:
        if not evidence.enough:
            self._move(1.0, "too little was measured yet")
        elif evidence.steepens:
            self._move(1.0, "a doubling of the data was worth more than the one before: the curve does not flatten yet")
        else:
            stays, wanted = self._bounded(evidence, 1.0), self._bounded(evidence, ROOM)
            if stays > self._budget:
                self._move(stays, "the bound broke the tolerance")
            elif wanted < self._budget and evidence.settled:
                # One rung at a time: what is known is known of the data so far.
                self._move(LADDER[LADDER.index(self._budget) + 1], "the bound is within the tolerance")
            elif self._budget == wanted == 1.0:
                self._move(1.0, "even the gentlest skipping may cost more than the tolerance")
        evidence.rare = evidence.enough and self._clearly_too_much(evidence)

    def _bounded(self, evidence: Evidence, room: float) -> float:
        """The least budget whose cost's upper bound takes at most ``room`` of the tolerances."""
        return min(budget for budget in LADDER if budget == 1.0 or self._cost(evidence, budget, 2.0) <= room)

    def _clearly_too_much(self, evidence: Evidence) -> bool:
        """Whether even the lower bound of the gentlest skipping's cost is twice the tolerance."""
        return self._cost(evidence, LADDER[1], -2.0) > 2.0

    def _cost(self, evidence: Evidence, budget: float, errors: float) -> float:
        """What a budget costs, so many standard errors above the estimate, as a share of the tighter tolerance."""
        doublings = math.log2(1.0 / budget)
        shares = [
            doublings * (max(gain.value, 0.0) + errors * gain.error) / tolerance
            for gain, tolerance in zip(evidence.next, (self.config.tolerance, self.config.auc_tolerance), strict=True)
            if tolerance is not None
        ]
        return max(shares)

    def _move(self, budget: float, reason: str) -> None:
        last = self._moves[-1]["reason"] if self._moves else None
        if budget == self._budget and reason == last:
            return
        self._budget = budget
        self._inner.set_budget(budget)
        self._log(budget, reason)

    def _log(self, budget: float, reason: str) -> None:
        evidence = self._evidence
        assert evidence is not None
        move: dict[str, Any] = {"samples": self._passed, "trained": evidence.trained, "budget": budget}
        if evidence.enough:
            move |= {"loss_per_doubling": evidence.loss.value, "loss_error": evidence.loss.error}
            if self._of_auc:
                move |= {"auc_per_doubling": evidence.auc.value, "auc_error": evidence.auc.error}
        self._moves.append(_told(move | {"reason": reason}))

    def take_moves(self) -> list[dict[str, Any]]:
        """What was decided since the last call."""
        new, self._told = self._moves[self._told :], len(self._moves)
        return [dict(move) for move in new]

    def state_dict(self) -> dict[str, Any]:
        """The copy of the model, measurements, the budget and the log."""
        return {
            "evidence": {} if self._evidence is None else self._evidence.state_dict(),
            "budget": self._budget,
            "counters": [self._epoch, self._passed, self._told],
            "moves": [dict(move) for move in self._moves],
            "inner": self._inner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state."""
        if self._evidence is not None and state["evidence"]:
            self._evidence.load_state_dict(state["evidence"])
        self._budget = finite_number(state, "budget")
        if self._budget not in LADDER:
            raise ConfigError(f"the state's budget is {self._budget}, none of {LADDER}")
        self._epoch, self._passed, self._told = (
            whole_number(state["counters"], place, of="counters ") for place in range(3)
        )
        self._moves = [_checked_move(move) for move in state["moves"]]
        self._inner.set_budget(self._budget)
        self._inner.load_state_dict(state["inner"])

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """What skips the inputs goes on; the evidence begins anew: its copy of the model is of the smaller one."""
        self._inner.continue_from(state["inner"], rows)

    def report(self) -> dict[str, Any]:
        """The budget now, each decision with its reason, and what a doubling of the data was worth last."""
        evidence = self._evidence
        report: dict[str, Any] = {
            "policy": self.config.policy,
            "tolerance": self.config.tolerance,
            "auc_tolerance": self.config.auc_tolerance,
            "budget": self._budget,
            "moves": [dict(move) for move in self._moves],
        }
        if evidence is not None and evidence.enough:
            report |= {"loss_per_doubling": evidence.loss.value, "batches_measured": evidence.measured}
            if self._of_auc:
                report["auc_per_doubling"] = evidence.auc.value
        return report


_EVIDENCE = ("loss_per_doubling", "loss_error", "auc_per_doubling", "auc_error")


def _told(move: Mapping[str, Any]) -> dict[str, Any]:
    """A decision as it is told and saved: without evidence that is no number."""
    return {name: value for name, value in move.items() if name not in _EVIDENCE or math.isfinite(value)}


def _checked_move(move: Mapping[str, Any]) -> dict[str, Any]:
    """A decision of a state.

    Raises:
        ConfigError: It is none.
    """
    for name in ("samples", "trained"):
        whole_number(move, name, of="move's ")
    finite_number(move, "budget", of="move's ")
    evidence = {name: float(move[name]) for name in _EVIDENCE if name in move}
    if move.keys() - evidence.keys() != {"samples", "trained", "budget", "reason"}:
        raise ConfigError(f"the state's move holds {', '.join(move)[:80]}")
    if not isinstance(move["reason"], str):
        raise ConfigError(f"the state's move's reason is {str(move['reason'])[:40]!r}, not a text")
    return _told({**move, **evidence})
