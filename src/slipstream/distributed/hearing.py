"""Policies that listen, over ranks: each hears the lookups and losses of all, and so decides as one process would.

A rank looks up its own part of a batch. Policies count lookups (``psse``, ``saturation``) to decide once in many steps,
so nothing is sent in each: a rank keeps what it heard, and before a decision the ranks exchange it (4 bytes a lookup)
and every one replays the steps since the last, in order. What a policy knows is then the same on all ranks, and the
same to the bit as in one process, however many ranks there are and whenever they exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slipstream.data.batch import Batch
from slipstream.distributed.exchange import refuse_drawn
from slipstream.distributed.parts import gather, gather_uneven, need_group, part
from slipstream.policies.base import Gated, Policy, Progress, TrainingData
from slipstream.policies.row_importance import RowImportance
from slipstream.staleness.own_past import Losses

_MOST_STEPS = 64
"""Steps after which the ranks exchange what they heard, so that it does not pile up."""


def over_ranks(policy: Policy) -> Policy:
    """The policy as it is used on several ranks; one that neither hears lookups nor wants losses is returned itself.

    ::

        skipper = sl.Skipper(model, over_ranks(PSSE(0.9)), batch_size=1024)

    ``skipper.observe(batch, losses)`` takes the batch of all ranks, and the losses of this rank's part. What
    ``state_dict`` gives is the state of all ranks, the same on each, and fits one process too; as the ranks exchange
    for it, every rank must call it.

    Raises:
        ConfigError: There is no process group.
    """
    need_group()
    hears = type(policy).observe_lookups is not Policy.observe_lookups
    draws = isinstance(policy, RowImportance)  # refused once it has its tables
    return _OverRanks(policy, hears) if hears or draws or policy.wants_losses else policy


class _OverRanks(Policy):
    """Stands between the Skipper and a policy, and passes everything on: some of it later, and of all ranks."""

    def __init__(self, inner: Policy, hears: bool) -> None:
        self._inner, self._hears = inner, hears
        self.name = inner.name  # type: ignore[misc]
        self.skips_inputs, self.skips_rows = inner.skips_inputs, inner.skips_rows
        self.plans_order, self.plans_runs = inner.plans_order, inner.plans_runs
        self.wants_losses, self.decides_alone = inner.wants_losses, inner.decides_alone
        self.chooses_by_label, self.follows_time = inner.chooses_by_label, inner.follows_time
        self._tables: list[Gated] = []
        self._number: dict[int, int] = {}
        self._steps: list[Progress] = []  # not passed on yet
        self._heard: list[list[list[Tensor]]] = []  # before each of these steps, and last before the next: by table
        self._dtype = torch.int32

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Passed on.

        Raises:
            ConfigError: The policy draws for each sample.
        """
        self._tables = list(tables.values())
        self._number = {id(table): number for number, table in enumerate(self._tables)}
        self._heard = [self._nothing()]
        if any(table.num_rows > torch.iinfo(torch.int32).max for table in self._tables):
            self._dtype = torch.int64
        self._inner.attach(tables, seed=seed)
        refuse_drawn(self._tables)

    def attach_model(self, model: nn.Module, losses: Losses) -> None:
        """A copy of the model predicts this rank's part, and all get the losses of the whole batch."""

        def of_all(model: nn.Module, batch: Batch) -> Tensor:
            own = part(batch)
            return gather(losses(model, own).float() if len(own) else torch.empty(0), len(batch))

        self._inner.attach_model(model, of_all)

    def observe_losses(self, batch: Batch, losses: Tensor) -> None:
        """The losses of this rank's part, float32 [B_rank], are joined with the others'."""
        self._inner.observe_losses(batch, gather(losses, len(batch)))

    def observe_lookups(self, table: Gated, ids: Tensor) -> None:
        """Keeps them."""
        if self._hears:
            self._heard[-1][self._number[id(table)]].append(ids.reshape(-1).clone())

    def update_gates(self, progress: Progress) -> None:
        """Passed on once the lookups of all ranks are; at once where the policy may decide."""
        if not self._hears:
            self._inner.update_gates(progress)
            return
        self._steps.append(progress)
        self._heard.append(self._nothing())
        if len(self._steps) >= _MOST_STEPS or self._inner.decides(progress):
            self._replay()

    def _nothing(self) -> list[list[Tensor]]:
        return [[] for _ in self._tables]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).to("cpu", self._dtype) if parts else torch.empty(0, dtype=self._dtype)

    def _replay(self) -> None:
        """Exchanges what was heard and passes it on, step by step."""
        heard = [[self._joined(parts) for parts in of_step] for of_step in self._heard]
        counts = torch.tensor([[ids.numel() for ids in of_step] for of_step in heard])
        counts_of = [torch.empty_like(counts) for _ in range(dist.get_world_size())]
        dist.all_gather(counts_of, counts)
        ids_of, _ = gather_uneven(
            torch.cat([ids for of_step in heard for ids in of_step]), [int(count.sum()) for count in counts_of]
        )
        pieces = [ids.split(count.flatten().tolist()) for ids, count in zip(ids_of, counts_of, strict=True)]
        steps, tables = self._steps, len(self._tables)
        self._steps, self._heard = [], [self._nothing()]
        for step in range(len(heard)):
            for number, table in enumerate(self._tables):
                ids = torch.cat([of_rank[step * tables + number] for of_rank in pieces])
                if len(ids):
                    self._inner.observe_lookups(table, ids.to(table.weight.device))
            if step < len(steps):
                self._inner.update_gates(steps[step])

    def decides(self, progress: Progress) -> bool:
        """Passed on."""
        return self._inner.decides(progress)

    def warm_up(self) -> None:
        """Passed on."""
        self._inner.warm_up()

    def plan(self, data: TrainingData) -> Tensor | None:
        """Passed on."""
        return self._inner.plan(data)

    def check_length(self, batches: int) -> None:
        """Passed on."""
        self._inner.check_length(batches)

    def test_positions(self) -> Tensor:
        """Passed on."""
        return self._inner.test_positions()

    def next_run(self, test_loss: float) -> Tensor | None:
        """Passed on."""
        return self._inner.next_run(test_loss)

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """Passed on: the batch is that of all ranks."""
        return self._inner.keep_probability(batch)

    def logit_offset(self, batch: Batch) -> Tensor:
        """Passed on."""
        return self._inner.logit_offset(batch)

    def take_moves(self) -> list[dict[str, Any]]:
        """Passed on."""
        return self._inner.take_moves()

    def set_budget(self, budget: float) -> None:
        """Passed on."""
        self._inner.set_budget(budget)

    def state_dict(self) -> dict[str, Any]:
        """The policy's, once it has heard all."""
        if self._hears:
            self._replay()
        return self._inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Passed on."""
        self._inner.load_state_dict(state)

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """Passed on."""
        self._inner.continue_from(state, rows)

    def report(self) -> dict[str, Any]:
        """Passed on."""
        return self._inner.report()
