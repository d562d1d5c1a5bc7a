"""What our optimizers share.

Dense parameters go to torch's optimizer, row gradients to one fused kernel call for all tables.
"""

from __future__ import annotations

import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from slipstream.embedding.memory import state_dtype, zeros_like_table
from slipstream.embedding.row_gradient import RowGradient
from slipstream.embedding.table import Site, Table
from slipstream.errors import ConfigError, UnsupportedOption
from slipstream.kernels import reference, registry
from slipstream.kernels.parallel import SlowPathWarning
from slipstream.kernels.types import TableSet, TableState, UpdateSettings
from slipstream.optim.catching_up import catch_up_all, note_caught_up
from slipstream.optim.plan import Part, joined
from slipstream.optim.refusals import (
    refuse_dense,
    refuse_gate,
    refuse_options_of_torch,
    refuse_state,
    refuse_unknown_options,
)
from slipstream.optim.unwrapped import hooked_when_watched, unwrapped, without_compiler

Untouched = Literal["lazy", "dense"]
"""What happens to rows that a step does not touch.

``lazy``: nothing, moments and decay wait (torch.optim.SparseAdam's semantics). ``dense``: what torch.optim does, by a
pass over the whole table (slow).
"""
OnSkip = Literal["freeze", "catch_up"]
"""What steps in which a row was skipped or untouched mean for its moments and decoupled decay.

``freeze``: nothing. ``catch_up``: the next update first decays them for all those steps, weights at its own rate.
"""

Group = dict[str, Any]

_MOST_PLANS = 16
"""Combinations of tables that an optimizer keeps prepared."""


@cache
def _say_dense() -> None:
    warnings.warn(
        'untouched="dense" passes over whole tables in every step, as torch.optim does; '
        'untouched="lazy" touches only the rows of the batch',
        SlowPathWarning,
        stacklevel=6,
    )


class RowStep(torch.optim.Optimizer, metaclass=ABCMeta):
    """Mixin in front of a ``torch.optim`` class.

    Takes the row gradients out, lets torch step the dense parameters, then updates the rows.
    """

    row_state: ClassVar[tuple[str, ...]] = ()
    """Names of a table's states, in the kernel's order."""
    rowwise: ClassVar[bool] = False
    """Whether they are [R] instead of [R, D]."""
    dense_optimizer: ClassVar[type[torch.optim.Optimizer]]
    """torch's optimizer for the dense parameters."""
    gate_seed: int = 0
    """Key of the random draws of gates between 0 and 255."""
    profile_hook_step = staticmethod(hooked_when_watched)
    """What torch puts around ``step``."""

    @abstractmethod
    def _settings(self, group: Group, step: int) -> UpdateSettings:
        """What the kernel is told of a group's rule in step ``step``, from 1."""

    def _init_rows(self, untouched: Untouched, on_skip: OnSkip) -> None:
        """Check the options and add them to the groups (call after torch's ``__init__``)."""
        self.defaults |= {"untouched": untouched, "on_skip": on_skip}
        for group in self.param_groups:
            group.setdefault("untouched", untouched)
            group.setdefault("on_skip", on_skip)
            refuse_unknown_options(group)

    def __getstate__(self) -> dict[str, Any]:
        """See torch, which copies and pickles by it; with the key of the gates' draws."""
        return {**super().__getstate__(), "gate_seed": self.gate_seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See torch, whose ``load_state_dict`` ends here; groups that torch's optimizer saved get our options."""
        super().__setstate__(state)
        defaults: Group = vars(self)["defaults"]
        for group in self.param_groups:
            for name in ("untouched", "on_skip"):
                group.setdefault(name, defaults[name])

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters; see torch."""
        without_compiler(super().add_param_group)(param_group)
        refuse_unknown_options(self.param_groups[-1])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters.

        Args:
            closure: Recomputes the loss (with backward) and returns it.

        Raises:
            UnsupportedOption: A setting of a group cannot be honoured for its tables.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work: list[tuple[Group, list[RowGradient], list[Part]]] = []
        densified: list[tuple[nn.Parameter, RowGradient]] = []
        everything = [group["params"] for group in self.param_groups]
        try:
            sorted_out: list[tuple[list[nn.Parameter], list[RowGradient]]] = []
            for group in self.param_groups:
                sorted_out.append(self._sorted_out(group, densified))
            for group, (_, rows) in zip(self.param_groups, sorted_out, strict=True):
                if rows:  # what is refused is refused before anything has moved
                    refuse_options_of_torch(type(self).__name__, group)
                    work.append((group, rows, self._plan(group, rows)))
            for group, (dense, _) in zip(self.param_groups, sorted_out, strict=True):
                group["params"] = dense
            behind = self._behind()
            if any(group["params"] for group in self.param_groups):
                with torch.no_grad():
                    for group, parameter, state in behind:
                        settings = self._settings(group, int(state["step"]) + 1)
                        catch_up_all(parameter, state, self._row_state_of(group), settings)
                    self._dense_step()
                    for _, _, state in behind:
                        note_caught_up(state)
        finally:
            for group, params in zip(self.param_groups, everything, strict=True):
                group["params"] = params
            for parameter, grad in densified:
                parameter.grad = grad
        if not self._overflowed():
            with torch.no_grad():
                for group, rows, plan in work:
                    self._row_step(group, rows, plan)
        return loss

    def _behind(self) -> list[tuple[Group, nn.Parameter, dict[str, Any]]]:
        """Of the parameters with a dense gradient the tables that have rows to catch up."""
        return [
            (group, parameter, self.state[parameter])
            for group in self.param_groups
            if group["on_skip"] == "catch_up"
            for parameter in group["params"]
            if parameter.grad is not None and "last_step" in self.state.get(parameter, ())
        ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See torch; with ``set_to_none`` without the label for its profiler, which costs more than the work."""
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _sorted_out(
        self, group: Group, densified: list[tuple[nn.Parameter, RowGradient]]
    ) -> tuple[list[nn.Parameter], list[RowGradient]]:
        """The parameters that torch's optimizer steps, and the row gradients that a kernel takes."""
        dense: list[nn.Parameter] = []
        rows: list[RowGradient] = []
        lazy = group["untouched"] == "lazy"
        for parameter in group["params"]:
            grad = parameter.grad
            if type(grad) is not RowGradient:
                if grad is not None and (table := Site.table_of(parameter)) is not None:
                    self._becomes_dense(table)
                dense.append(parameter)
                continue
            if grad.table.weight is not parameter:
                raise UnsupportedOption(
                    f"the gradient of table {grad.table.name!r} was given to another parameter",
                    remedy="give it weight.grad.to_dense()",
                )
            if lazy and grad.dense is None:
                rows.append(grad)
            else:
                self._becomes_dense(grad.table)
                _say_dense()
                densified.append((parameter, grad))
                parameter.grad = grad.to_dense()
                dense.append(parameter)
        return dense, rows

    def _becomes_dense(self, table: Table) -> None:
        """Hand a table's state to torch's optimizer, which steps it by a dense gradient."""
        refuse_dense(table)
        state = self.state.get(table.weight, {})
        if self.rowwise and any(state.get(name) is not None for name in self.row_state):
            raise UnsupportedOption(
                f"table {table.name!r} has one number a row as its state, and its gradient is dense",
                remedy="use the weight for lookups only, or another optimizer",
            )
        if isinstance(state.get("step"), int):
            state["step"] = torch.tensor(float(state["step"]))

    def _dense_step(self) -> None:
        # Without torch's two wrappers: one would run the hooks of this optimizer a second time (it is there once an
        # optimizer of torch's class was made), one keeps gradients off, as they are here, and imports the compiler.
        step = unwrapped(unwrapped(self.dense_optimizer.step, "torch.optim.optimizer"), "torch.optim.optimizer")
        step(cast(Any, self))

    def _overflowed(self) -> bool:
        """GradScaler hands optimizers that unscale by themselves (``fused=True``) what it found."""
        found = getattr(self, "found_inf", None)
        return found is not None and bool(found.item())

    def _row_step(self, group: Group, gradients: list[RowGradient], plan: list[Part]) -> None:
        grad_scale = getattr(self, "grad_scale", None)
        unscale = 1.0 if grad_scale is None else _reciprocal(grad_scale)
        for part in plan:
            part.refresh(gradients, unscale)
            batch = [gradients[i] for i in part.positions]
            for tables, at, step in part.steps():
                own = batch if at is None else [batch[i] for i in at]
                owners = part.owners if at is None else [part.owners[i] for i in at]
                self._update(tables, owners, own, self._settings(group, step))
            if part.is_captured():  # nothing has happened yet: before_replay() counts the step
                vars(self).setdefault("_captured", {})[id(part)] = (group, part)
                for state in part.optimizer_states:
                    state["step"] -= 1

    def before_replay(self) -> None:
        """Counts a step of the tables and sends its numbers, before each replay of a CUDA graph that holds ``step``.

        The step's rate is the one that the groups have now, so schedules go on. A group of dense parameters needs
        ``capturable=True`` where torch counts steps (Adam, AdamW). Of several graphs all must update the same tables.

        Raises:
            ConfigError: No step was captured, or none since :meth:`load_state_dict`, whose state no graph knows.
        """
        captured = vars(self).get("_captured")
        if not captured:
            raise ConfigError("no step of this optimizer was captured", remedy="capture one in a torch.cuda.graph")
        for group, part in captured.values():
            for tables, _, step in part.steps():
                registry.write_settings(tables, self._settings(group, step))

    @staticmethod
    def _update(tables: TableSet, owners: list[Table], gradients: list[RowGradient], settings: UpdateSettings) -> None:
        counts = registry.row_update(tables, joined(gradients), settings)
        if counts.totals is not None:
            for position, owner in enumerate(owners):
                owner.count_on_device(counts.totals, position)
            return
        for owner, gradient, lookups, skipped in zip(owners, gradients, counts.lookups, counts.skipped, strict=True):
            dropped = gradient.dropped()
            owner.count(lookups + dropped + gradient.summed, skipped + dropped)

    def _plan(self, group: Group, gradients: list[RowGradient]) -> list[Part]:
        """The group's tables, prepared for the kernel: made once, and again when other tables have gradients."""
        plans: dict[Any, list[Part]] = vars(self).setdefault("_plans", {})
        options = (self._row_state_of(group), group["on_skip"], self.gate_seed)
        key = (options, *[id(gradient.table) for gradient in gradients])
        plan = plans.get(key)
        if plan is None or not all(part.is_of(self.state, options[0]) for part in plan):
            kinds: dict[tuple[int, torch.dtype, torch.device], list[int]] = {}
            for position, gradient in enumerate(gradients):
                weight = gradient.table.weight
                kinds.setdefault((weight.shape[1], weight.dtype, weight.device), []).append(position)
                state = self.state[weight]
                if group["on_skip"] != "catch_up":  # that of a loaded state, or of before
                    state.pop("last_step", None)
                needed = (
                    "step",
                    *self._row_state_of(group),
                    *(["last_step"] if group["on_skip"] == "catch_up" else []),
                )
                if any(state.get(name) is None for name in needed):
                    self._new_state(weight, group, state)
                refuse_gate(gradients[position].table)
                refuse_state(gradients[position].table, state, self.row_state, rowwise=self.rowwise)
            plan = [self._part(positions, gradients, options[0]) for positions in kinds.values()]
            if len(plans) > _MOST_PLANS:
                plans.clear()
            plans[key] = plan
        else:
            for part in plan:
                for owner, table in zip(part.owners, part.tables, strict=True):
                    if owner.gate is not table.gate:
                        refuse_gate(owner)
        return plan

    def _part(self, positions: list[int], gradients: list[RowGradient], names: tuple[str, ...]) -> Part:
        owners = [gradients[i].table for i in positions]
        states = [self.state[table.weight] for table in owners]
        order = {id(p): i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        tables = TableSet()
        for table, state in zip(owners, states, strict=True):
            first, second = (*(state.get(name) for name in names), None, None)[:2]
            # Else equal ids of all tables would draw alike.
            seed = (self.gate_seed << 20) + order.get(id(table.weight), 0)
            last_step = state.get("last_step")
            tables.append(
                TableState(table.weight, first, second, table.gate, last_step, seed=seed, by_sample=table.by_sample)
            )
        return Part(positions, owners, tables, states, [], {})

    def new_row_state(self, weight: nn.Parameter) -> dict[str, Any]:
        """A table's state, made now instead of at its first step.

        Args:
            weight: The table's parameter, one of this optimizer's.
        """
        group = next(group for group in self.param_groups if any(p is weight for p in group["params"]))
        self._new_state(weight, group, self.state[weight])
        return self.state[weight]

    def _new_state(self, weight: Tensor, group: Group, state: dict[str, Any]) -> None:
        if state.get("step") is None:
            state["step"] = 0  # a number: a tensor for each table would cost more than the kernel
        for name in self._row_state_of(group):
            if state.get(name) is None:  # options may change in the middle of a run: what is there stays
                state[name] = self._fresh(weight.detach(), group)
        if group["on_skip"] == "catch_up" and state.get("last_step") is None:
            now = reference.wrap_step(int(state["step"]))  # nothing before counts as missed
            state["last_step"] = torch.full((weight.shape[0],), now, dtype=torch.int32, device=weight.device)

    def _fresh(self, weight: Tensor, group: Group) -> Tensor:
        """The start of a table's state: float32, for a table of float64 as that."""
        return zeros_like_table(weight, rowwise=self.rowwise)

    def _row_state_of(self, group: Group) -> tuple[str, ...]:
        return self.row_state

    def state_dict(self) -> dict[str, Any]:
        """See torch."""
        return without_compiler(super().state_dict)()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See torch; row-wise and integer states keep their shape, and tables' states what they are computed in."""
        without_compiler(super().load_state_dict)(state_dict)
        vars(self).update(_plans={}, _captured={})
        kept = ("last_step", *self.row_state)
        saved = {i: s for i, s in state_dict["state"].items() if any(name in s for name in kept)}
        flat = [p for group in self.param_groups for p in group["params"]]
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        for position, parameter in zip(ids, flat, strict=True):
            for name in kept:  # torch casts every state to the parameter's dtype
                value = saved.get(position, {}).get(name)
                if not isinstance(value, Tensor) or (name != "last_step" and Site.table_of(parameter) is None):
                    continue
                dtype = torch.int32 if name == "last_step" else state_dtype(parameter)
                if self.state[parameter][name].dtype != dtype:
                    self.state[parameter][name] = value.to(parameter.device, dtype, copy=True)


def _reciprocal(scale: Tensor) -> float | Tensor:
    """1 / GradScaler's scale; on a GPU a tensor, for which nobody waits."""
    return 1.0 / float(scale.item()) if scale.device.type == "cpu" else scale.float().reciprocal()


__all__ = ["OnSkip", "RowStep", "Untouched"]
