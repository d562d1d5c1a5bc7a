"""Row importance [ours]: of the lookups in a batch those whose gradients are small seldom take part in the update.

Importance sampling by the norm of the gradient (Needell, Srebro and Ward, arXiv 1310.5715; Zhao and Zhang, arXiv
1401.2753; Katharopoulos and Fleuret, arXiv 1803.00942), drawn for each lookup after backward, where the norm is known
and not guessed, in place of each sample before it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from slipstream.embedding.table import Table
from slipstream.errors import ConfigError, UnsupportedOption
from slipstream.kernels import registry
from slipstream.kernels.reference_sampling import Sampling
from slipstream.kernels.types import DrawnLookups, Lookups
from slipstream.policies.base import Gated, Policy, PolicyBaseConfig, Progress, share_in_range, validated
from slipstream.restored import copy_into, finite_number, whole_number
from slipstream.staleness import DecayedCounts
from slipstream.staleness.growth import grow_rows

_FLOOR = 1 / 64
"""Least keep-probability, so that no lookup stands for more than 64; a quarter of the budget where that is less."""
_GAIN = 0.5
"""What the factor's logarithm loses where a step spends twice its budget; it loses, and gains, no more in a step."""
_CORRECTION = 20
"""Steps over which a deviation from the budget is made good."""
_MOST = 4
"""The lookups of so many steps are made good at most: not all that a leap of all gradients costs."""
_ENOUGH = 0.5
"""Nothing is taken off a step that spends less of its budget: what was spent before must not starve those after."""
_FURTHEST = 1e4
"""The factor is at most so many times that at which probabilities would add up to the budget if none were above 1: a
budget that cannot be met, since most gradients are 0, must not drive it away from where it will be wanted again."""
_STREAM = 0x5A11
"""Mixed into the seed, so that no other draw is shared."""


class RowImportanceConfig(PolicyBaseConfig):
    """Row importance."""

    name: Literal["row_importance"] = "row_importance"
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] = 0.5
    """Share of the row accesses that take part in updates, in the mean; in (0, 1]."""
    exponent: float = Field(default=0.25, ge=0.0, le=1.0)
    """How fast the keep-probability falls with a row's popularity, in [0, 1]; 0: the gradient alone counts."""
    half_life: float = Field(default=2_000.0, gt=0.0, allow_inf_nan=False)
    """Steps after which an access counts half for popularity."""


class _Control:
    """What scores are multiplied by, so that the share of lookups that is kept is the budget in the mean.

    An account is kept of what was spent too much, and wanted shares are smaller for it. Deviations count as they are,
    not by their logarithm: where small and large gradients come by turns, those add up to 0 and shares do not.

    Numbers on the CPU; scalars on a GPU, for which nobody waits.

    Args:
        device: Where lookups are drawn.
    """

    def __init__(self, device: torch.device) -> None:
        on_cpu = device.type == "cpu"
        self.factor: float | Tensor = math.inf if on_cpu else torch.full((), torch.inf, device=device).double()
        self._owed: float | Tensor = 0.0 if on_cpu else torch.zeros((), device=device).double()  # in budgets of a step
        self._sums: list[float] | Tensor = [0.0] * 3 if on_cpu else torch.zeros(3, device=device).double()

    def add(self, sums: Tensor, unit: float) -> None:
        """Adds a pass's probabilities, scores (in units of their own) and number of lookups, float64 [3]."""
        sums[1] *= unit
        if isinstance(self._sums, Tensor):
            self._sums += sums
        else:
            new = cast(Any, sums).tolist()
            self._sums = [old + more for old, more in zip(self._sums, new, strict=True)]

    def steer(self, budget: float) -> None:
        """Brings the mean share nearer to the budget, after a step; the first tells how large scores are."""
        if isinstance(self._sums, Tensor):
            self._steer_on_device(self._sums, budget)
            return
        chance, score, number = self._sums
        self._sums = [0.0] * 3
        if not 0.0 < score < math.inf:
            return
        evenly, owed = budget * number / score, 0.0
        learned = evenly
        if self.factor != math.inf:
            over, most = chance / (budget * number) - 1.0, _MOST / budget
            owed = min(max(cast(float, self._owed) + over, -most), most)
            less = min(max(over + owed / _CORRECTION, -1.0), 1.0 if over >= _ENOUGH - 1.0 else 0.0)
            learned = min(self.factor * math.exp(-_GAIN * less), _FURTHEST * evenly)
        if 0.0 < learned < math.inf:
            self.factor, self._owed = learned, owed

    def _steer_on_device(self, sums: Tensor, budget: float) -> None:
        chance, score, number = sums
        factor, before = torch.as_tensor(self.factor), torch.as_tensor(self._owed)
        evenly, over, most = budget * number / score, chance / (budget * number) - 1.0, _MOST / budget
        owed = (before + over).clamp(-most, most)
        less = torch.minimum((over + owed / _CORRECTION).clamp(min=-1.0), (over >= _ENOUGH - 1.0).double())
        moved = torch.minimum(factor * torch.exp(-_GAIN * less), _FURTHEST * evenly)
        first = torch.isinf(factor)
        learned = torch.where(first, evenly, moved)
        valid = torch.isfinite(evenly) & torch.isfinite(learned) & (learned > 0.0)
        self.factor = torch.where(valid, learned, factor)
        self._owed = torch.where(valid & ~first, owed, before)
        sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The factor, what was spent too much, and the sums since the last step."""
        return {"factor": self.factor, "owed": self._owed, "sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state, of the CPU's or of a GPU's; an older one owes nothing."""
        state = {"owed": 0.0, **state}
        if isinstance(self._sums, Tensor):
            for name, own in (("factor", self.factor), ("owed", self._owed), ("sums", self._sums)):
                copy_into(cast(Tensor, own), torch.as_tensor(state[name], dtype=torch.float64), name)
        else:
            self.factor, self._sums = float(state["factor"]), [float(total) for total in state["sums"]]
            self._owed = finite_number({"owed": float(state["owed"])}, "owed")
            if not (self.factor > 0.0 and len(self._sums) == 3):
                raise ConfigError(f"the state's factor is {self.factor}, of {len(self._sums)} sums")


class RowImportance(Policy):
    """Updates rows from the lookups that move them most, weighed so that the expected gradient is that of all.

    A lookup takes part with probability p = min(1, t · |g| / n^exponent), drawn for each lookup and step: |g| is the
    norm of its gradient, n the popularity of its row, and t is steered so that the share kept is the budget in the
    mean. What is kept weighs 1 / p. Of all choices of as many lookups, p in proportion to |g| has the least variance
    (the papers above); rows of few lookups have fewer of them to average over, hence n.

    Where most samples are predicted well, which is where one class is rare, most gradients are small, and leaving out
    half of the lookups or more costs next to nothing. Forward pass, loss and the gradients of everything else see every
    sample; what is saved is the row update. The norms are read of the gradients that are there: about the cost of
    reading them once.

    The first step takes all lookups, to learn how large gradients are. On a CPU a draw costs about what half of the
    update of rows of 16 numbers does: it saves time from rows of 64 on.

    Memory: 4 bytes a row, and 20 bytes a lookup between backward and step.

    Args:
        budget: Share of the row accesses that take part in updates, in (0, 1].
        exponent: How fast p falls with popularity, in [0, 1].
        half_life: Steps after which an access counts half, above 0.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "row_importance"
    skips_rows = True

    def __init__(self, budget: float = 0.5, *, exponent: float = 0.25, half_life: float = 2_000.0) -> None:
        settings = {"budget": budget, "exponent": exponent, "half_life": half_life}
        self.config = validated(RowImportanceConfig, settings)
        self._counts: dict[str, DecayedCounts] = {}
        self._counts_of: dict[int, DecayedCounts] = {}
        self._totals = torch.zeros(0, 2, dtype=torch.int64)  # of tables on a GPU: lookups left out, twice
        self._places: dict[int, int] = {}
        self._control = _Control(torch.device("cpu"))
        self._draws = self._step = self._seed = 0

    def warm_up(self) -> None:
        """Loads the drawing."""
        sampling = Sampling([torch.zeros(1)], 1.0, 1.0, self.config.exponent, 1.0, 0, 0)
        registry.sample_lookups(Lookups(torch.zeros(1, 1, dtype=torch.int32), None, 1), torch.ones(1, 1, 1), sampling)

    def set_budget(self, budget: float) -> None:
        """Changes the share of row accesses, from the next step on."""
        self.config = validated(RowImportanceConfig, self.config.model_dump() | {"budget": budget})

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Has the tables ask which lookups take part.

        Raises:
            ConfigError: A table cannot.
        """
        for name, table in tables.items():
            if not isinstance(table, Table):
                raise ConfigError(
                    f"policy 'row_importance' cannot draw lookups of table {name!r}: its rows are behind a row cache, "
                    "or it is a shard of TorchRec's",
                    remedy="train without a row cache, or use policy 'psse'",
                )
            table.sampler = weakref.WeakMethod(self.sample)
        half_life = self.config.half_life
        self._counts = {name: DecayedCounts(t.num_rows, half_life, t.weight.device) for name, t in tables.items()}
        self._counts_of = {id(table): self._counts[name] for name, table in tables.items()}
        self._places = {id(table): place for place, table in enumerate(tables.values())}
        device = next((table.weight.device for table in tables.values()), torch.device("cpu"))
        self._totals = torch.zeros(len(tables), 2, dtype=torch.int64, device=device)
        self._control = _Control(device)
        self._seed = (seed << 16) + _STREAM

    def sample(self, tables: Sequence[Table], lookups: Lookups, grad: Tensor) -> Lookups | DrawnLookups:
        """The lookups of a backward pass that take part in the update; see :data:`slipstream.embedding.table.Sampler`.

        Raises:
            UnsupportedOption: A CUDA graph is being captured: each replay would draw alike.
        """
        if self.config.budget == 1.0:
            return lookups
        counts = [self._counts_of.get(id(table)) if table.weight.requires_grad else None for table in tables]
        if grad.is_cuda and torch.cuda.is_current_stream_capturing():
            raise UnsupportedOption("policy 'row_importance' cannot draw in a CUDA graph", remedy="use policy 'psse'")
        increment = next((own.increment for own in counts if own is not None), 1.0)
        unit = increment**self.config.exponent  # popularity counts in increments, which grow
        sampling = Sampling(
            [None if own is None else own.scores for own in counts],
            increment,
            self._control.factor * unit,
            self.config.exponent,
            min(_FLOOR, self.config.budget / 4),
            self._draws,
            self._seed,
        )
        sampled = registry.sample_lookups(lookups, grad, sampling)
        self._draws += 1
        self._control.add(sampled.sums, unit)
        if not isinstance(sampled.lookups, DrawnLookups):
            self._count(tables, sampled.dropped)
        return sampled.lookups

    def _count(self, tables: Sequence[Table], dropped: Tensor) -> None:
        """Counts what was left out where the step does not know."""
        own = [(feature, table) for feature, table in enumerate(tables) if id(table) in self._places]
        places = torch.tensor([self._places[id(table)] for _, table in own], device=dropped.device)
        left_out = dropped[torch.tensor([feature for feature, _ in own], device=dropped.device)]
        self._totals.index_add_(0, places, left_out.unsqueeze(1).expand(-1, 2))
        for _, table in own:
            table.count_on_device(self._totals, self._places[id(table)])

    def update_gates(self, progress: Progress) -> None:
        """Lets accesses fade, and brings the share that is kept nearer to the budget."""
        if progress.step > self._step:
            for counts in self._counts.values():
                counts.advance(progress.step - self._step)
            self._step = progress.step
        self._control.steer(self.config.budget)

    def state_dict(self) -> dict[str, Any]:
        """Accesses, the factor, and how many draws there were."""
        return {
            "counts": {name: counts.state_dict() for name, counts in self._counts.items()},
            "control": self._control.state_dict(),
            "draws": self._draws,
            "step": self._step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of other tables or rows.
        """
        if state["counts"].keys() != self._counts.keys():
            raise ConfigError(
                f"row_importance state is of tables {sorted(state['counts'])}, not {sorted(self._counts)}"
            )
        for name, counts in self._counts.items():  # refuses other numbers of rows
            counts.load_state_dict(state["counts"][name])
        self._control.load_state_dict(state["control"])
        self._draws, self._step = whole_number(state, "draws"), whole_number(state, "step")

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """New rows were never looked up."""
        counts = {
            name: {**saved, "scores": grow_rows(saved["scores"], rows[name])} for name, saved in state["counts"].items()
        }
        self.load_state_dict({**state, "counts": counts})

    def report(self) -> dict[str, Any]:
        """Budget, and how often lookups were drawn."""
        return {"budget": self.config.budget, "draws": self._draws}
