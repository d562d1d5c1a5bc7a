"""Importance: unbiased skipping of inputs that a cheap scout already predicts well.

Importance sampling with 1/p weights (Katharopoulos and Fleuret, arXiv 1803.00942), its score taken from a scout instead
of the model itself, so that a skipped input costs no forward pass. [ours]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from slipstream.policies.base import Policy, PolicyBaseConfig, share_in_range, validated
from slipstream.staleness.surprise import Scout, in_proportion

if TYPE_CHECKING:
    from slipstream.data.batch import Batch

_CORRECTION = 10
"""Batches over which a deviation from the budget is made good."""


class ImportanceConfig(PolicyBaseConfig):
    """Importance."""

    name: Literal["importance"] = "importance"
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] = 0.5
    """Share of the inputs that are trained on, in the mean; in (0, 1]."""
    floor: float = Field(default=0.1, gt=0.0, le=1.0)
    """Least keep-probability, so that no input weighs more than 1 / floor; at most ``budget``."""
    power: float = Field(default=1.0, gt=0.0, le=4.0)
    """The keep-probability grows with surprise to this power."""
    fresh_below: int = Field(default=0, ge=0)
    """Inputs with a row that was seen fewer times are always kept (as far as half the budget goes); 0: none are."""
    warmup_samples: int = Field(default=20_000, ge=0)
    """Inputs at the start that are kept at random, while the scout knows too little."""
    bits: int = Field(default=21, ge=8, le=28)
    """The scout has ``2^bits`` slots of 16 bytes."""
    lr: float = Field(default=0.1, gt=0.0, allow_inf_nan=False)
    """The scout's learning rate."""

    @model_validator(mode="after")
    def _fits(self) -> ImportanceConfig:
        if self.floor > self.budget:
            raise ValueError(f"floor must be at most budget ({self.budget}), got {self.floor}")
        return self


class Importance(Policy):
    """Keeps each input with a probability that grows with its surprise, and weighs it by the inverse.

    Surprise is ``|p - y|``, p the probability that an on-line logistic regression over the same ids gave the label y
    before it learned from it. It is, up to a factor, the norm of a logistic loss's gradient with respect to the logit:
    the choice of least variance among those of equal cost. Needs labels, so it serves training alone. Expected
    gradients are those of the full data.

    Args:
        budget: Share of the inputs trained on, in (0, 1].
        floor: Least keep-probability, in (0, budget].
        power: Exponent of the surprise, in (0, 4].
        fresh_below: Inputs with a row seen fewer times are always kept, up to half the budget.
        warmup_samples: Inputs kept at random at the start.
        bits: The scout has ``2^bits`` slots.
        lr: The scout's learning rate.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "importance"
    skips_inputs = True

    def __init__(
        self,
        budget: float = 0.5,
        *,
        floor: float = 0.1,
        power: float = 1.0,
        fresh_below: int = 0,
        warmup_samples: int = 20_000,
        bits: int = 21,
        lr: float = 0.1,
    ) -> None:
        self.config = validated(
            ImportanceConfig,
            {
                "budget": budget,
                "floor": floor,
                "power": power,
                "fresh_below": fresh_below,
                "warmup_samples": warmup_samples,
                "bits": bits,
                "lr": lr,
            },
        )
        self._floor = floor  # as asked for; the one in use may be lower for a while
        self._scout = Scout(bits=bits, lr=lr)
        self._debt = 0.0  # inputs that the budget allowed and that were not kept, in expectation
        self._expected = 0.0

    def warm_up(self) -> None:
        """Loads the scout."""
        scout, nothing = Scout(bits=8), torch.zeros(1, 0)
        bag = (torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1]))
        scout.predict_and_learn(torch.zeros(1, 1, dtype=torch.int32), [bag], nothing, torch.zeros(1))
        in_proportion(torch.ones(1), 0.5, 0.5)

    def set_budget(self, budget: float) -> None:
        """Changes the share; the floor falls with it where it has to, and comes back with it."""
        values = self.config.model_dump() | {"budget": budget, "floor": min(self._floor, budget)}
        # A budget out of range is the problem to name, not the floor that follows it.
        self.config = validated(ImportanceConfig, values if 0.0 < budget <= 1.0 else values | {"floor": self._floor})

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """Lets the scout predict and learn, and turns its surprise into probabilities.

        None at a budget of 1, where a scout that has begun goes on learning: the budget may fall again.

        Raises:
            ConfigError: A label is outside [0, 1], or a dense value is not a finite number; nothing was learned then.
        """
        config, inputs = self.config, batch.inputs
        if config.budget == 1.0 and not self._scout.inputs:
            return None
        if not len(batch):
            return torch.empty(0)
        known = self._scout.inputs
        bags = [(bag.values, bag.offsets) for bag in inputs.bags]
        predicted, seen = self._scout.predict_and_learn(inputs.ids, bags, inputs.dense, batch.labels)
        if config.budget == 1.0:
            self._expected += len(batch)
            return None
        if known < config.warmup_samples:
            keep = torch.full((len(batch),), config.budget)
        else:
            wanted = config.budget + self._debt / (_CORRECTION * len(batch))
            fresh = seen < config.fresh_below
            keep = self._spread((predicted - batch.labels).abs() ** config.power, fresh, wanted)
        expected = float(keep.sum())
        self._expected += expected
        self._debt += config.budget * len(batch) - expected
        return keep

    def _spread(self, score: Tensor, fresh: Tensor, wanted: float) -> Tensor:
        """Probabilities in proportion to the score, within [floor, 1], with the mean ``wanted`` if it can be had."""
        floor = self.config.floor
        wanted = min(max(wanted, floor), 1.0)
        always = int(fresh.sum())
        if always:
            score = score.masked_fill(fresh, 0.0)
        # What the fresh ones take of the batch's budget: all they want, but at most half.
        of_fresh = min(1.0, max(floor, 0.5 * wanted * score.numel() / always)) if always else 0.0
        goal = wanted * score.numel() - always * of_fresh + always * floor
        keep = in_proportion(score, floor, goal)
        return keep.masked_fill_(fresh, of_fresh) if always else keep

    def state_dict(self) -> dict[str, Any]:
        """The scout and the account of the budget."""
        return {"scout": self._scout.state_dict(), "debt": self._debt, "expected": self._expected}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of a scout with another number of slots.
        """
        self._scout.load_state_dict(state["scout"])
        self._debt, self._expected = float(state["debt"]), float(state["expected"])

    def report(self) -> dict[str, Any]:
        """Settings, the share kept in expectation, and the scout's log-loss."""
        report: dict[str, Any] = {"budget": self.config.budget, "floor": self.config.floor, "power": self.config.power}
        if self._scout.inputs:
            report["expected_share"] = self._expected / self._scout.inputs
            report["scout_log_loss"] = self._scout.loss / self._scout.inputs
        return report
