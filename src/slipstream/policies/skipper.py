"""The Skipper stands between the loader and the training loop and carries out what a policy decides."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from slipstream.data.batch import Batch
from slipstream.data.columns import Columns
from slipstream.embedding import tables as tables_of
from slipstream.embedding.cached import cached_tables
from slipstream.embedding.table import OPEN, Table
from slipstream.errors import ConfigError
from slipstream.kernels import registry
from slipstream.policies.base import Gated, Policy, Progress, TrainingData
from slipstream.policies.listening import listener_of, stop_listening
from slipstream.policies.packing import Packer
from slipstream.policies.report import SkipReport
from slipstream.policies.row_updates import RowUpdates
from slipstream.restored import whole_number
from slipstream.staleness.own_past import Losses

_INPUT_STREAM = 0x51D5
"""Mixed into the seed, so that inputs and gates (which hash rows and steps) never share draws."""
MEMORY = 1 << 14
"""Kept inputs by which the mean weight is held at 1, up to twice as many: few enough to find back there soon after a
change of the budget, enough that it wavers by half a percent."""
FEW_KEPT = 8
"""Inputs that a batch keeps in the mean below which weights correct for its choice: an input's own label then moves the
probabilities of all, more than an offset of first order says."""

_SERVED: weakref.WeakValueDictionary[int, Skipper] = weakref.WeakValueDictionary()
"""The Skipper of each policy, by the policy's id: a Skipper holds its policy, so that the id stays its own."""


def _parts(policy: Policy) -> tuple[Policy, ...]:
    """The policy, and those that it combines."""
    return (policy, *getattr(policy, "parts", ()))


def cross_entropies(model: nn.Module, batch: Batch) -> Tensor:
    """The cross-entropy of each sample, float32 [B], of a model that gives logits [B] for ``batch.inputs``."""
    return functional.binary_cross_entropy_with_logits(model(batch.inputs).float(), batch.labels, reduction="none")


class Skipper:
    """Drops inputs, repacks the kept ones into full batches with weights, and has the policy set the rows' gates.

    ::

        skipper = Skipper(model, Random(budget=0.5), batch_size=2048)
        for batch in skipper(loader):                 # one call is one epoch
            loss = (criterion(model(batch.inputs), batch.labels) * batch.weights).mean()
            ...

    Training that is not a loop over a loader (prequential, say) pushes batches itself:
    ``for batch in skipper.push(chunk)``, and :meth:`flush` at the end.

    An input is kept when the hash of (its index, seed, epoch) is below its probability p: a decision never depends on
    how inputs are batched. A kept input weighs (1/p) · (kept / decided, of late), the expected gradient's direction
    being that of the full data and the mean weight about 1, so a learning rate keeps its meaning. Inputs that a policy
    drops for good (p = 0) count in neither number. A loop that adds ``batch.logit_offset`` to its logits, and says so
    by ``adds_logit_offset``, lets a policy that chooses by the label correct there, at weights of 1, as long as each
    input is new to the policy: in the first epoch.

    Decisions are made on the CPU: batches come from a loader and are handed out there; a training on a GPU sends what
    it was handed (``batch.to(device, non_blocking=True)``). Gates, signals and counts of accesses lie where the tables
    lie; a row policy's decision, once in many steps, brings them to the CPU.

    A policy that skips no inputs, without a ``batch_size``, costs nothing: batches pass as they are.

    Args:
        model: The model; its tables are found by ``slipstream.embedding.tables``.
        policy: What to skip; serves this Skipper only, until :meth:`detach`.
        batch_size: Inputs in each batch handed out (the last of an epoch may have fewer). None: that of the first
            batch pushed, if the policy skips inputs; else batches keep their sizes.
        seed: Seed of all draws.
        to_batch: Makes a :class:`~slipstream.data.batch.Batch` of what the loader yields, if it yields something else.
        total_samples: Inputs that will be pushed in all epochs together, if known; policies that end with a refresh
            need it, and with a ``batch_size`` a warm-up that was not set is at most a tenth of the training.
        losses: The loss of each sample of a batch under a model (float32 [B], not weighted), for policies that set the
            model against an earlier copy of itself; by default the cross-entropy of ``model(batch.inputs)``.
        tables: Tables by name that the policy sees, where they are not of ours (TorchRec's shards); None: the model's.
        adds_logit_offset: The loop's loss is the cross-entropy of labels 0 and 1, and it adds ``batch.logit_offset``
            (where that is not None) to the logits. A policy that chooses by the label then corrects there, and not by
            weights, in the first epoch: the loss varies less.

    Raises:
        ConfigError: ``batch_size`` is below 1, ``policy`` is none or serves another Skipper, or it skips rows and the
            model has no table of ours.

    Warns:
        UserWarning: Rows have gates that are not open, of a Skipper of before or set by hand. They stay so until the
            policy sets gates, if it does.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        to_batch: Callable[[Any], Batch] | None = None,
        total_samples: int | None = None,
        losses: Losses = cross_entropies,
        tables: Mapping[str, Gated] | None = None,
        adds_logit_offset: bool = False,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size must be 1 or more, got {batch_size}")
        if not isinstance(cast(Any, policy), Policy):
            raise ConfigError(f"policy={policy!r} is no policy", remedy="make one, as slipstream.policies.Random(0.5)")
        for part in _parts(policy):
            if id(part) in _SERVED:
                raise ConfigError(
                    f"policy {part.name!r} serves another Skipper, whose counts would mix with this one's",
                    remedy="make one for each, or detach() the other",
                )
        self.policy = policy
        found: Mapping[str, Gated] = {**tables_of(model), **cached_tables(model)}
        self.tables: Mapping[str, Gated] = found if tables is None else tables
        if policy.skips_rows and not self.tables and tables is None:  # a rank may hold none of the shards
            raise ConfigError(
                f"policy {policy.name!r} skips row updates, and the model has no tables that can",
                remedy="swap its embeddings with slipstream.convert(model)",
            )
        self.seed = seed
        self.batch_size = batch_size
        self.to_batch = to_batch
        if policy.chooses_by_label and type(policy).logit_offset is Policy.logit_offset:
            raise ConfigError(f"policy {policy.name!r} says chooses_by_label, and has no logit_offset")
        # A policy that watches losses needs the model's own, with weights that make them the full data's.
        self.adds_logit_offset = adds_logit_offset
        """Whether the loop adds the batch's ``logit_offset``."""
        self._by_offset = adds_logit_offset and policy.chooses_by_label and not policy.wants_losses
        self.total_samples = total_samples
        self.inputs_seen = 0
        """Inputs pushed."""
        self.inputs_kept = 0
        """Inputs kept, those still waiting for a full batch included."""
        self.steps = 0
        """Batches handed out."""
        self.epoch = 0
        """Epochs finished; each draws anew which inputs are kept."""
        self.weights: Tensor | None = None
        """float32 [B], those of the batch handed out last, for losses that are not computed in the loop itself."""
        self._samples = 0
        self._lately = (0, 0)  # kept and decided, older ones fading
        self._first_epoch = 0
        self._seen = False  # whether a training that this one continues had these inputs
        self._unfinished: object | None = None
        self._planned = False
        self._passed = 0  # samples of this epoch that Columns has numbered
        self._earlier = (0, 0)  # steps and samples of trainings that this one continues
        self._packer = Packer()
        self.row_updates = RowUpdates(self.tables.values())
        """Row lookups of trained inputs since the Skipper came, and those of them whose update was skipped."""
        for table in self.tables.values():
            if policy.skips_rows and isinstance(table, Table):
                table.by_sample, table.sampler = False, None  # whatever an earlier policy did
        before = self._shut_gates()
        policy.attach(self.tables, seed=seed)
        self._say_gates(before)
        policy.attach_model(model, losses)
        if total_samples is not None and batch_size is not None:
            with suppress(ConfigError):  # the length is for defaults; whether it is enough, a Trainer decides
                policy.check_length(-(-total_samples // batch_size))
        listener = listener_of(self)
        if type(policy).observe_lookups is not Policy.observe_lookups:
            for table in self.tables.values():
                table.listeners.append(listener)
        # A Skipper that nobody holds any more, replaced by another one say, stops listening by itself.
        own = policy.skips_rows  # else a sampler is another Skipper's
        heard = [
            (weakref.ref(table), getattr(table, "sampler", None) if own else None) for table in self.tables.values()
        ]
        self._stop_listening = weakref.finalize(self, stop_listening, heard, listener)
        self._stop_listening.atexit = False
        _SERVED.update({id(part): self for part in _parts(policy)})

    def __call__(self, loader: Iterable[Any]) -> Iterator[Batch]:
        """One epoch: the batches to train on.

        One that is left early (``break``, ``itertools.islice``) ends there: the next draws anew which inputs are kept,
        and those that wait for a full batch are trained on in it.

        Args:
            loader: Batches, or whatever ``to_batch`` makes batches of.
        """
        if self._unfinished is not None:  # left, and not closed
            self._end_epoch()
        self._unfinished = mine = object()
        try:
            for batch in loader:
                yield from self.push(batch)
            self._unfinished = None
            yield from self.flush()
        finally:
            if self._unfinished is mine:
                self._unfinished = None
                self._end_epoch()

    def plan(self, data: TrainingData) -> Tensor | None:
        """What the policy plans of the data, before the first batch; see :meth:`Policy.plan`.

        For policies with ``plans_order``, whose samples are to come in the order that it returns.
        """
        self._planned = True
        return self.policy.plan(data)

    def push(self, batch: Any) -> Iterator[Batch]:
        """Decides on a batch of the full data, and hands out the full batches that there are now: none, one or several.

        Exhaust the iterator; gates are updated between the batches that it yields.

        Raises:
            ConfigError: It is no Batch, nor made one by ``to_batch``.
        """
        if isinstance(self.to_batch, Columns):
            made = self.to_batch(batch, self._passed)
            self._passed += len(made)
        else:
            made = batch if self.to_batch is None else self.to_batch(batch)
        if not isinstance(made, Batch):
            who = "the loader yields" if self.to_batch is None else "to_batch makes"
            raise ConfigError(
                f"{who} {type(made).__name__}, not slipstream.data.Batch",
                remedy="pass to_batch, such as slipstream.data.Columns(ids=[...], label=...)",
            )
        yield from self._take(*self._decide(made))

    def flush(self) -> Iterator[Batch]:
        """Hands out the inputs that wait for a full batch, if any, and ends the epoch."""
        rest, ended = self._packer.rest(), self.epoch
        self._end_epoch()
        if rest is not None:
            yield self._hand_out(rest, ended)

    def _end_epoch(self) -> None:
        self.epoch += 1
        self._passed = 0

    def _decide(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """The batch, and which of its inputs are kept: int64 [K], their weights set, or None for all as they are."""
        if self.policy.plans_order and not self._planned:
            raise ConfigError(
                f"policy {self.policy.name!r} plans the order of the samples, and nothing was planned",
                remedy="call skipper.plan(data) first (then load_state_dict, where it goes on), as slipstream.training "
                "does; slipstream has mode='periodic' too",
            )
        size = len(batch)
        self.inputs_seen += size
        if self.batch_size is None and self.policy.skips_inputs and size:
            self.batch_size = size
        probability = self.policy.keep_probability(batch) if self.policy.skips_inputs else None
        if probability is None:
            self.inputs_kept += size
            return batch, None
        if probability.shape != (size,):
            shape = list(probability.shape)
            raise ConfigError(f"policy {self.policy.name!r} gave probabilities of shape {shape} for {size} inputs")
        seed, (kept, decided) = self.seed ^ _INPUT_STREAM, self._lately
        rows, weights, dropped = registry.keep(batch.index, seed, self.epoch, probability, batch.weights, kept, decided)
        self.inputs_kept += rows.numel()
        self._lately = _faded(kept + rows.numel(), decided + size - dropped)
        if self.corrects_by_offset:
            offset = self.policy.logit_offset(batch)
            if offset.shape != (size,):
                raise ConfigError(
                    f"policy {self.policy.name!r} gave offsets of shape {list(offset.shape)} for {size} inputs"
                )
            own = torch.zeros(size) if batch.logit_offset is None else batch.logit_offset
            if float(probability.sum()) >= FEW_KEPT:
                return replace(batch, logit_offset=own + offset), rows
            return replace(batch, weights=weights, logit_offset=own), rows
        return replace(batch, weights=weights), rows

    def _take(self, batch: Batch, rows: Tensor | None) -> Iterator[Batch]:
        size = self.batch_size
        if size is None or (rows is None and len(batch) == size and not self._packer.waiting):
            yield self._hand_out(batch)
            return
        if self.corrects_by_offset and batch.logit_offset is None:  # all were kept; others that wait were chosen
            batch = replace(batch, logit_offset=torch.zeros(len(batch)))
        self._packer.add(batch, torch.arange(len(batch)) if rows is None else rows, size)
        while (full := self._packer.take()) is not None:
            yield self._hand_out(full)

    def _hand_out(self, batch: Batch, epoch: int | None = None) -> Batch:
        time = self._time_of(batch)
        epoch = self.epoch if epoch is None else epoch
        share = min(self.inputs_seen / self.total_samples, 1.0) if self.total_samples else None
        steps, samples = self._earlier
        over = epoch - self._first_epoch
        self.policy.update_gates(Progress(steps + self.steps, samples + self._samples, time, share, over))
        self.steps += 1
        self._samples += len(batch)
        self.weights = batch.weights
        return batch

    def _time_of(self, batch: Batch) -> int | None:
        if batch.time is None or not self.policy.skips_rows or not len(batch):
            return None
        # One sample with a wrong clock would carry the last one's far ahead.
        return int(batch.time.median() if self.policy.follows_time else batch.time[-1])

    def observe(self, batch: Batch, losses: Tensor) -> None:
        """Tells the policy the model's loss on a batch, before its step; needed if ``policy.wants_losses``.

        Args:
            batch: As it was handed out, on the CPU, B inputs.
            losses: float32 [B], not weighted; detached here, and waited for where they are on a GPU.
        """
        if self.policy.wants_losses:
            self.policy.observe_losses(batch, losses.detach().cpu())

    def detach(self) -> None:
        """Stops watching the tables, and drawing of their lookups. Gates stay as they are."""
        self._stop_listening()
        for part in _parts(self.policy):
            if _SERVED.get(id(part)) is self:
                del _SERVED[id(part)]

    def _shut_gates(self) -> dict[str, tuple[int, int]]:
        """Which gates, and of what age, are not all open."""
        gates = {name: getattr(table, "gate", None) for name, table in self.tables.items()}
        shut = {name: gate for name, gate in gates.items() if gate is not None and bool((gate != OPEN).any())}
        return {name: (id(gate), gate._version) for name, gate in shut.items()}

    def _say_gates(self, before: dict[str, tuple[int, int]]) -> None:
        left = [name for name, gate in self._shut_gates().items() if before.get(name) == gate]
        if left:
            others = f" and {len(left) - 1} more" if len(left) > 1 else ""
            warnings.warn(
                f"tables {left[0]!r}{others}: rows have gates of before that are not open, and stay so unless policy "
                f"{self.policy.name!r} sets them; table.set_gate(None) opens all",
                stacklevel=3,
            )

    @property
    def corrects_by_offset(self) -> bool:
        """Whether kept inputs are corrected for by ``logit_offset`` now, not by weights.

        In the first epoch alone, and of inputs that no earlier training had: a policy that has learned from an input
        knows the label that its probability, had the label been the other, must not depend on.
        """
        return self._by_offset and not self._seen and self.epoch == self._first_epoch

    @property
    def share_of_inputs_trained(self) -> float:
        """Inputs kept ÷ inputs pushed; 1 before the first."""
        return self.inputs_kept / self.inputs_seen if self.inputs_seen else 1.0

    @property
    def share_of_row_updates_skipped(self) -> float:
        """Row lookups of trained inputs whose update was skipped ÷ all of them, since the Skipper came."""
        lookups, skipped = self.row_updates()
        return skipped / lookups if lookups else 0.0

    def report(self) -> SkipReport:
        """What was skipped so far."""
        return SkipReport(
            policy=self.policy.name,
            inputs_seen=self.inputs_seen,
            inputs_kept=self.inputs_kept,
            steps=self.steps,
            share_of_inputs_trained=self.share_of_inputs_trained,
            share_of_row_updates_skipped=self.share_of_row_updates_skipped,
            details=self.policy.report() | self._correction(),
        )

    def _correction(self) -> dict[str, str]:
        """How kept inputs stand for those left out, of a policy that lets the training choose."""
        if not self.policy.chooses_by_label:
            return {}
        later = ", then weights" if self.epoch > self._first_epoch + 1 else ""
        return {"corrected_by": f"odds{later}" if self._by_offset and not self._seen else "weights"}

    def state_dict(self) -> dict[str, Any]:
        """Counts, inputs that wait for a full batch, and the policy's state: tensors, numbers, dicts and lists."""
        lookups, skipped = self.row_updates()
        return {
            "policy": self.policy.name,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "inputs_seen": self.inputs_seen,
            "inputs_kept": self.inputs_kept,
            "steps": self.steps,
            "epoch": self.epoch,
            "samples": self._samples,
            "passed": self._passed,
            "lately": list(self._lately),
            "earlier": list(self._earlier),
            "first_epoch": self._first_epoch,
            "seen": self._seen,
            "lookups": lookups,
            "skipped": skipped,
            "waiting": self._packer.state_dict(),
            "policy_state": self.policy.state_dict(),
        }

    def _lately_of(self, state: Mapping[str, Any]) -> tuple[int, int]:
        if "lately" not in state:  # a state of before: all that was kept and decided
            return _faded(self.inputs_kept, self.inputs_seen - whole_number(state, "dropped"))
        lately = state["lately"]
        if type(lately) not in (list, tuple) or len(lately) != 2:
            raise ConfigError(f"the state's lately is {str(lately)[:40]!r}, not two whole numbers")
        kept, decided = (whole_number(lately, place, of="lately ") for place in (0, 1))
        if kept > decided:
            raise ConfigError(f"the state has {kept} of {decided} inputs kept lately")
        return _faded(kept, decided)

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int], *, seen: bool = False) -> None:
        """Takes over what the policy of a training on earlier data knows; counts and the report begin anew.

        The policy's steps and the draws of later epochs go on from where that training ended.

        Args:
            state: Of its Skipper.
            rows: R of each table now, by parameter name; tables may have got rows at their end.
            seen: The training's inputs, or some, are those of an earlier one: weights correct for a choice by the
                label, as in a second epoch.

        Raises:
            ConfigError: The state is of another policy.
        """
        if state["policy"] != self.policy.name:
            raise ConfigError(f"the Skipper's state is of policy {state['policy']!r}, not {self.policy.name!r}")
        steps, samples = _earlier(state)
        self._earlier = (steps + whole_number(state, "steps"), samples + whole_number(state, "samples"))
        self.epoch = self._first_epoch = whole_number(state, "epoch")
        self._seen = seen
        self.policy.continue_from(state["policy_state"], rows)
        self.row_updates.set(0, 0)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state`` was taken, in a Skipper of the same policy, seed and model.

        Raises:
            ConfigError: The state is of another policy, seed, batch size or model.
        """
        self._unfinished = None  # an epoch that was going on is not this one
        for name, mine in (("policy", self.policy.name), ("seed", self.seed)):
            if state[name] != mine:
                raise ConfigError(f"the Skipper's state is of {name} {state[name]!r}, not {mine!r}")
        if self.batch_size is not None and state["batch_size"] not in (None, self.batch_size):
            raise ConfigError(f"the Skipper's state is of batch_size {state['batch_size']}, not {self.batch_size}")
        self.policy.load_state_dict(state["policy_state"])
        self.batch_size = None if state["batch_size"] is None else whole_number(state, "batch_size", least=1)
        self.inputs_seen, self.inputs_kept = whole_number(state, "inputs_seen"), whole_number(state, "inputs_kept")
        self.steps, self.epoch = whole_number(state, "steps"), whole_number(state, "epoch")
        self._samples = whole_number(state, "samples")
        self._passed = whole_number({"passed": 0, **state}, "passed")
        self._lately = self._lately_of(state)
        self._earlier = _earlier(state)
        self._first_epoch = whole_number({"first_epoch": 0, **state}, "first_epoch")
        self._seen = bool(state.get("seen", False))
        waiting = dict(state["waiting"])
        if waiting and self.corrects_by_offset:  # a state of before there were any: those inputs have weights
            waiting.setdefault("logit_offset", torch.zeros_like(waiting["labels"]))
        elif "logit_offset" in waiting and self.policy.chooses_by_label:
            raise ConfigError(
                "the Skipper's state has inputs that the logits' offsets correct for",
                remedy="set adds_logit_offset, and the policy's correction, as they were",
            )
        self._packer.load_state_dict(waiting, self.batch_size)
        # The tables' own counters may or may not have been restored.
        self.row_updates.set(whole_number(state, "lookups"), whole_number(state, "skipped"))


def _faded(kept: int, decided: int) -> tuple[int, int]:
    """Halved where they are many. Seldom, since what halving rounds off would add up batch by batch."""
    while kept >= 2 * MEMORY:
        kept, decided = kept // 2, decided // 2
    return kept, decided


def _earlier(state: Mapping[str, Any]) -> tuple[int, int]:
    """Steps and samples of the trainings before that of the state; older states know of none."""
    earlier = state.get("earlier", (0, 0))
    return whole_number(earlier, 0, of="earlier "), whole_number(earlier, 1, of="earlier ")
