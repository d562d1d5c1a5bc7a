"""Importance: skipping of inputs that a cheap scout already predicts well, corrected for.

Importance sampling (Katharopoulos and Fleuret, arXiv 1803.00942), its score taken from a scout instead of the model
itself, so that a skipped input costs no forward pass [ours]. What the choice did to the labels' odds is corrected in
the logits (local case-control sampling: Fithian and Hastie, arXiv 1306.3706, section 3; for rare events Wang, Zhang and
Wang, arXiv 2110.13048), or by weights 1/p where the loss is another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.policies.base import Policy, PolicyBaseConfig, share_in_range, validated
from slipstream.restored import finite_number, whole_number
from slipstream.staleness.surprise import BaseRate, Scout, Skill, in_proportion

if TYPE_CHECKING:
    from slipstream.data.batch import Batch

_FLOOR = 0.1
"""Least keep-probability unless another one is asked for."""
_CORRECTION = 10
"""Batches over which a deviation from the budget is made good."""
_TRIAL = 100_000
"""Inputs that a scout sees before it may rest."""
_WAKE = 16
"""A resting scout looks at one batch in so many."""


class ImportanceConfig(PolicyBaseConfig):
    """Importance."""

    name: Literal["importance"] = "importance"
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] = 0.5
    """Share of the inputs that are trained on, in the mean; in (0, 1]."""
    floor: float | None = Field(default=None, gt=0.0, le=1.0)
    """Least keep-probability, so that no input stands for more than 1 / floor; at most ``budget``.

    None: 0.1, or half the budget where that is less: at the budget itself there would be nothing to choose.
    """
    score: Literal["scout", "label"] = "scout"
    """Whose surprise counts: the scout's, or that of the labels' base rate alone, which costs nothing."""
    correction: Literal["odds", "weights"] = "odds"
    """``odds``: an offset of the logits in the loss, in trainings that can (a logistic loss of labels 0 and 1) and in
    the first epoch; all else, and all with ``weights``, weigh kept inputs by 1/p."""
    power: float = Field(default=1.0, gt=0.0, le=4.0)
    """The keep-probability grows with surprise to this power."""
    fresh_below: int = Field(default=0, ge=0)
    """Inputs with a row that was seen fewer times are always kept (as far as half the budget goes); 0: none are."""
    warmup_samples: int = Field(default=20_000, ge=0)
    """Inputs at the start that are kept by their labels alone, while the scout knows too little."""
    rest_below: float = Field(default=0.01, ge=0.0, lt=1.0)
    """A scout that explains less than this share of the labels' entropy rests, and the labels stand in; 0: never."""
    bits: int = Field(default=21, ge=8, le=28)
    """The scout has ``2^bits`` slots of 16 bytes."""
    lr: float = Field(default=0.1, gt=0.0, le=1e9)
    """The scout's learning rate."""

    @model_validator(mode="after")
    def _fits(self) -> ImportanceConfig:
        if self.floor is not None and self.floor > self.budget:
            raise ValueError(f"floor must be at most budget ({self.budget}), got {self.floor}")
        return self

    @property
    def least(self) -> float:
        """The floor in use."""
        return min(_FLOOR, self.budget / 2) if self.floor is None else self.floor


class Importance(Policy):
    """Keeps each input with a probability that grows with its surprise, and corrects for it.

    Surprise is ``|p - y|``, p the probability that an on-line logistic regression over the same ids gave the label y
    before it learned from it. It is, up to a factor, the norm of a logistic loss's gradient with respect to the logit:
    the choice of least variance among those of equal cost. Needs labels, so it serves training alone.

    An input of label y was kept with probability a(y). With ``correction="odds"`` the loss is the cross-entropy of
    logit + log(a(1) / a(0)): a logit that is right for all inputs is then right for those kept, and no input weighs
    more than another. So it is for a model that can represent the truth; one that cannot fits best where inputs were
    kept.

    With ``"weights"``, where the training's loss is not a logistic one of labels 0 and 1, where fewer than eight inputs
    of a batch are kept in the mean, and from the second epoch on, as in a training that continues one on the same data
    (the scout has then learned the very labels that it predicts), a kept input weighs 1/a: expected gradients are those
    of the full data whatever the model and the loss, but they vary more.

    With ``score="label"`` p is the labels' base rate of late: negative down-sampling as it is common for click logs
    (He et al., 2014), corrected while training in place of a later recalibration. It takes no time, and is the control
    that a scout has to beat. A scout that explains next to nothing (on logs whose negatives were drawn to match, say)
    is not worth its time: it rests, and wakes for one batch in 16 to see whether that has changed.

    Args:
        budget: Share of the inputs trained on, in (0, 1].
        floor: Least keep-probability, in (0, budget]; None: 0.1, or half the budget if that is less.
        score: ``scout`` or ``label``.
        correction: ``odds`` or ``weights``.
        power: Exponent of the surprise, in (0, 4].
        fresh_below: Inputs with a row seen fewer times are always kept, up to half the budget; the scout never rests.
        warmup_samples: Inputs kept by their labels alone at the start.
        rest_below: Share of the labels' entropy that the scout must explain, in [0, 1).
        bits: The scout has ``2^bits`` slots.
        lr: The scout's learning rate.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "importance"
    skips_inputs = True
    decides_alone = True

    def __init__(
        self,
        budget: float = 0.5,
        *,
        floor: float | None = None,
        score: Literal["scout", "label"] = "scout",
        correction: Literal["odds", "weights"] = "odds",
        power: float = 1.0,
        fresh_below: int = 0,
        warmup_samples: int = 20_000,
        rest_below: float = 0.01,
        bits: int = 21,
        lr: float = 0.1,
    ) -> None:
        self.config = validated(
            ImportanceConfig,
            {
                "budget": budget,
                "floor": floor,
                "score": score,
                "correction": correction,
                "power": power,
                "fresh_below": fresh_below,
                "warmup_samples": warmup_samples,
                "rest_below": rest_below,
                "bits": bits,
                "lr": lr,
            },
        )
        self.chooses_by_label = correction == "odds"
        self._floor = floor  # as asked for; the one in use follows the budget
        self._base = BaseRate()
        self._scout = Scout(bits=bits, lr=lr) if score == "scout" else None
        self._skill = Skill()
        self._inputs = self._batches = self._rested = 0
        self._debt = 0.0  # inputs that the budget allowed and that were not kept, in expectation
        self._expected = 0.0
        self._last: tuple[Tensor, Tensor | None, Tensor, float] | None = None  # score, fresh, probability, factor

    def warm_up(self) -> None:
        """Loads the scout."""
        scout, nothing = Scout(bits=8), torch.zeros(1, 0)
        bag = (torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1]))
        scout.predict_and_learn(torch.zeros(1, 1, dtype=torch.int32), [bag], nothing, torch.zeros(1))
        in_proportion(torch.ones(1), 0.5, 0.5)

    def set_budget(self, budget: float) -> None:
        """Changes the share; the floor falls with it where it has to, and comes back with it."""
        # A budget out of range is the problem to name, not the floor that follows it.
        floor = self._floor if self._floor is None or not 0.0 < budget <= 1.0 else min(self._floor, budget)
        self.config = validated(ImportanceConfig, self.config.model_dump() | {"budget": budget, "floor": floor})

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """Has the batch's labels predicted and learned, and turns the surprise into probabilities.

        None at a budget of 1, where a scout that has begun goes on learning: the budget may fall again.

        Raises:
            ConfigError: A label is outside [0, 1], or a dense value is not a finite number; nothing was learned then.
        """
        config, size = self.config, len(batch)
        if config.budget == 1.0 and not self._inputs:
            return None
        if not size:
            return torch.empty(0)
        score, seen = self._surprise(batch)
        self._inputs += size
        if config.budget == 1.0:
            self._expected += size
            return None
        wanted = config.budget + self._debt / (_CORRECTION * size)
        keep = self._spread(score, None if seen is None else seen < config.fresh_below, wanted)
        expected = float(keep.sum())
        self._expected += expected
        self._debt += config.budget * size - expected
        return keep

    def _surprise(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Surprise of each input, float32 [B], and, for ``fresh_below``, how often its rarest row was seen."""
        config, labels = self.config, batch.labels
        warming = self._inputs < config.warmup_samples
        rests = self._rests()
        self._batches += 1
        if self._scout is None or (rests and self._batches % _WAKE):
            self._rested += len(batch)
            return (self._base.predict_and_learn(labels) - labels).abs(), None
        inputs, before = batch.inputs, self._scout.loss
        bags = [(bag.values, bag.offsets) for bag in inputs.bags]
        predicted, seen = self._scout.predict_and_learn(inputs.ids, bags, inputs.dense, labels)
        rate = self._base.predict_and_learn(labels)
        self._skill.add(self._scout.loss - before, rate, labels)
        score = (rate if warming or rests else predicted) - labels
        return score.abs(), seen if config.fresh_below else None

    def _rests(self) -> bool:
        least = self.config.rest_below
        may = least > 0.0 and not self.config.fresh_below and self._inputs >= _TRIAL
        return may and self._skill.explained < least

    def _spread(self, score: Tensor, fresh: Tensor | None, wanted: float) -> Tensor:
        """Probabilities in proportion to the score, within [floor, 1], with the mean ``wanted`` if it can be had."""
        floor, power = self.config.least, self.config.power
        wanted = min(max(wanted, floor), 1.0)
        chance = score if power == 1.0 else score**power
        always = 0 if fresh is None else int(fresh.sum())
        if fresh is None or not always:
            keep, factor = in_proportion(chance, floor, wanted * score.numel())
        else:
            # What the fresh ones take of the batch's budget: all they want, but at most half.
            of_fresh = min(1.0, max(floor, 0.5 * wanted * score.numel() / always))
            goal = wanted * score.numel() - always * of_fresh + always * floor
            keep, factor = in_proportion(chance.masked_fill(fresh, 0.0), floor, goal)
            keep.masked_fill_(fresh, of_fresh)
        self._last = score, fresh, keep, factor
        return keep

    def logit_offset(self, batch: Batch) -> Tensor:
        """See the base class; of fresh inputs, which are kept whatever their label, 0.

        Raises:
            ConfigError: A label is neither 0 nor 1.
        """
        if not len(batch):
            return torch.empty(0)
        if bool(((batch.labels != 0) & (batch.labels != 1)).any()):
            raise ConfigError(
                "policy 'importance': correction='odds' needs labels of 0 and 1", remedy="set correction to weights"
            )
        assert self._last is not None, "keep_probability comes first"
        score, fresh, keep, factor = self._last
        least, power = self.config.least, self.config.power
        chance, other = score**power, (1.0 - score) ** power
        # The other label would have been as surprising as this one was expected, and the factor another: what the
        # others between floor and 1 share with this input stays.
        free = (keep > least) & (keep < 1.0)
        if fresh is not None:
            free &= ~fresh
        own = torch.where(free, chance, 0.0).double()  # rare labels to a high power: float32 loses them in the sum
        rest = (own.sum() - own).clamp_min(0.0)
        expected = (factor * rest + keep) * other / (rest + other).clamp_min(torch.finfo(torch.float32).tiny)
        other = expected.float().clamp_(least, 1.0)
        offset = torch.where(batch.labels > 0, keep / other, other / keep).log_()
        return offset if fresh is None else offset.masked_fill_(fresh, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Scout, base rate, what the scout explains, and the account of the budget."""
        return {
            "scout": None if self._scout is None else self._scout.state_dict(),
            "base": self._base.state_dict(),
            "skill": self._skill.state_dict(),
            "inputs": self._inputs,
            "batches": self._batches,
            "rested": self._rested,
            "debt": self._debt,
            "expected": self._expected,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of another ``score``, or of a scout with another number of slots.
        """
        if (state["scout"] is None) != (self._scout is None):
            raise ConfigError(
                f"the state is not of score {self.config.score!r}",
                remedy="set score as it was when the state was saved",
            )
        if self._scout is not None:
            self._scout.load_state_dict(state["scout"])
        self._base.load_state_dict(state["base"])
        self._skill.load_state_dict(state["skill"])
        self._inputs, self._batches = whole_number(state, "inputs"), whole_number(state, "batches")
        self._rested = whole_number(state, "rested")
        self._debt, self._expected = finite_number(state, "debt"), finite_number(state, "expected")

    def report(self) -> dict[str, Any]:
        """Settings, the share kept in expectation, the scout's log-loss, what it explains and how much it rested."""
        names = ("budget", "floor", "score", "power")
        report: dict[str, Any] = {name: getattr(self.config, name) for name in names}
        if self._inputs:
            report["expected_share"] = self._expected / self._inputs
        if self._scout is not None and self._scout.inputs:
            report["scout_log_loss"] = self._scout.loss / self._scout.inputs
            report["scout_explains"] = self._skill.explained
            report["scout_rested"] = self._rested / self._inputs
        return report
