"""Watches what a policy does in each call."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.data.batch import Batch
from slipstream.policies.base import Gated, Policy, Progress, TrainingData
from slipstream.staleness.own_past import Losses


def check(holds: bool, name: str, sentence: str) -> None:
    """Raises AssertionError, the policy's name first, unless a rule holds."""
    if not holds:
        raise AssertionError(f"policy {name!r} {sentence}")


def equal(one: Any, two: Any) -> bool:
    """Whether nested values are the same, tensors bit for bit."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two or (one != one and two != two))  # NaN


def _parts(batch: Batch) -> list[Any]:
    return [batch.inputs, batch.labels, batch.index, batch.weights, batch.time, batch.logit_offset]


def _flipped(twin: Policy, batch: Batch) -> tuple[float, bool]:
    """The probability of the first input if its label were the other one, and whether the label is 1."""
    labels = batch.labels.clone()
    labels[0] = 1.0 - labels[0]
    other = twin.keep_probability(replace(batch, labels=labels))
    return (1.0 if other is None else float(other[0])), bool(batch.labels[0] > 0)


class Watched(Policy):
    """Passes every call on to a policy, and checks what comes back."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.name = policy.name  # pyright: ignore[reportIncompatibleVariableOverride, reportAttributeAccessIssue]
        self.skips_inputs, self.skips_rows = policy.skips_inputs, policy.skips_rows
        self.plans_order, self.plans_runs = policy.plans_order, policy.plans_runs
        self.wants_losses, self.decides_alone = policy.wants_losses, policy.decides_alone
        self.chooses_by_label, self.follows_time = policy.chooses_by_label, policy.follows_time
        says = type(policy).logit_offset is not Policy.logit_offset
        check(says or not policy.chooses_by_label, self.name, "says chooses_by_label, and has no logit_offset")
        self._tables: Mapping[str, Gated] = {}
        self._flips = 20
        self._other: tuple[float, float, bool] | None = None

    def warm_up(self) -> None:
        """Passes on."""
        self.policy.warm_up()

    def check_length(self, batches: int) -> None:
        """Passes on."""
        self.policy.check_length(batches)

    def plan(self, data: TrainingData) -> Tensor | None:
        """Passes on; an order must hold each sample once."""
        order = self.policy.plan(data)
        if order is None:
            return None
        check(self.plans_order, self.name, "plans an order and plans_order is False")
        whole = order.dtype == torch.int64 and torch.equal(order.sort().values, torch.arange(data.num_samples))
        check(whole, self.name, "plans an order that is not each sample's position once, int64 [N]")
        return order

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Passes on."""
        self._tables = tables
        with self._hands_off("attach"):
            self.policy.attach(tables, seed=seed)

    def attach_model(self, model: nn.Module, losses: Losses) -> None:
        """Passes on."""
        with self._hands_off("attach_model"):
            self.policy.attach_model(model, losses)

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """Passes on; probabilities must be float32 [B] in [0, 1], and the batch the same."""
        before = copy.deepcopy(batch)
        twin = copy.deepcopy(self.policy) if self.chooses_by_label and self._flips and len(batch) else None
        with self._hands_off("keep_probability"):
            keep = self.policy.keep_probability(batch)
        self._other = None if twin is None or keep is None else (float(keep[0]), *_flipped(twin, batch))
        check(equal(_parts(batch), _parts(before)), self.name, "writes into the batch in keep_probability")
        if keep is not None:
            check(keep.dtype == torch.float32, self.name, f"returns probabilities of {keep.dtype}, not float32")
            shape = tuple(keep.shape)
            check(shape == (len(batch),), self.name, f"returns probabilities of shape {shape}, not ({len(batch)},)")
            in_range = bool(((keep >= 0.0) & (keep <= 1.0)).all())
            check(in_range, self.name, "returns probabilities outside [0, 1], or NaN")
        return keep

    def logit_offset(self, batch: Batch) -> Tensor:
        """Passes on; they must be finite, float32 [B]."""
        with self._hands_off("logit_offset"):
            logit_offset = self.policy.logit_offset(batch)
        kind = (
            f"logit offsets of {logit_offset.dtype} and shape {tuple(logit_offset.shape)}, not float32 ({len(batch)},)"
        )
        check(logit_offset.dtype == torch.float32 and logit_offset.shape == (len(batch),), self.name, f"returns {kind}")
        check(bool(logit_offset.isfinite().all()), self.name, "returns logit offsets that are not finite")
        if self._other is not None:
            self._flips -= 1
            kept, other, label = self._other
            check(
                kept > 0.0 and other > 0.0, self.name, "drops an input for good by its label, which no offset makes up"
            )
            wanted = math.log(kept / other) * (1.0 if label else -1.0)
            said = (
                f"says an offset of {float(logit_offset[0]):.3f}; with the other label it would be kept so that it is"
            )
            check(abs(wanted - float(logit_offset[0])) < 0.15, self.name, f"{said} {wanted:.3f}")
        return logit_offset

    def observe_lookups(self, table: Gated, ids: Tensor) -> None:
        """Passes on; the ids must stay the same."""
        before = ids.clone()
        self.policy.observe_lookups(table, ids)
        check(torch.equal(ids, before), self.name, "writes into the ids in observe_lookups")

    def update_gates(self, progress: Progress) -> None:
        """Passes on."""
        with self._hands_off("update_gates"):
            self.policy.update_gates(progress)

    def observe_losses(self, batch: Batch, losses: Tensor) -> None:
        """Passes on."""
        with self._hands_off("observe_losses"):
            self.policy.observe_losses(batch, losses)

    def take_moves(self) -> list[dict[str, Any]]:
        """Passes on."""
        return self.policy.take_moves()

    def set_budget(self, budget: float) -> None:
        """Passes on."""
        self.policy.set_budget(budget)

    def state_dict(self) -> dict[str, Any]:
        """Passes on."""
        return self.policy.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Passes on."""
        self.policy.load_state_dict(state)

    def report(self) -> dict[str, Any]:
        """Passes on."""
        return self.policy.report()

    def _hands_off(self, method: str) -> _HandsOff:
        return _HandsOff(self, self._tables, method)


class _HandsOff:
    """Weights are the same before and after, and gates are gates."""

    def __init__(self, policy: Policy, tables: Mapping[str, Gated], method: str) -> None:
        self._policy, self._tables, self._method = policy, tables, method

    def __enter__(self) -> None:
        self._before = {name: table.weight.detach().clone() for name, table in self._tables.items()}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        policy = self._policy
        for name, table in self._tables.items():
            same = torch.equal(table.weight.detach(), self._before[name])
            check(same, policy.name, f"writes into the weights of {name} in {self._method}")
            gate = table.gate
            if gate is not None:
                check(policy.skips_rows, policy.name, "sets gates and skips_rows is False")
                fits = gate.dtype == torch.uint8 and tuple(gate.shape) == (table.num_rows,)
                check(fits, policy.name, f"sets a gate of {gate.dtype} {tuple(gate.shape)}, not uint8 [R]")
