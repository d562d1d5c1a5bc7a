"""Where a training's time goes, and so what skipping can save at most by Amdahl's law [ours]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from slipstream.data.batch import Batch
from slipstream.data.store import Store
from slipstream.embedding import CachedEmbeddingCollection
from slipstream.errors import ConfigError
from slipstream.optim import clip_grad_norm_
from slipstream.policies import NoneConfig, Skipper, build_policy
from slipstream.policies.configs import POLICIES
from slipstream.training.config import TrainConfig
from slipstream.training.loop import Trainer
from slipstream.training.predicting import autocast
from slipstream.training.run import open_data, thread_count
from slipstream.training.warm_up import warm_up

BUDGETS = (0.25, 0.5, 0.7, 0.9)
"""Shares kept for which bounds are given."""
WARM_UP = 5
"""Steps before those that count."""
WORTH = 1.2
"""Speed-up at half the work from which skipping is recommended: less is lost to a smaller AUC or a slow machine."""
PHASES = ("input", "lookup", "dense forward", "dense backward", "row gradients", "row update", "dense optimizer")
_INPUTS = ("importance", "random")
_ROWS = ("row_importance", "subsampling", "saturation", "psse")


class Bound(BaseModel):
    """The most that a policy can save."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str
    """Its name."""
    skips: str
    """inputs, rows, or inputs and rows."""
    overhead: float
    """Seconds a step that deciding on a full batch takes; 0 for policies that are not measured (rows, orders)."""
    speed_up: dict[float, float]
    """By budget: time of a full training ÷ time with the policy, quality left aside; below 1 it costs time."""


class Profile(BaseModel):
    """Where the time of a step goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    """Steps measured."""
    batch_size: int
    """Samples of a step."""
    seconds: dict[str, float]
    """Median of each phase, seconds a step; see ``PHASES``."""
    step_seconds: float
    """Their sum."""
    bounds: tuple[Bound, ...]
    """Per policy."""
    recommended: str | None
    """Name of a policy, None when no skipping can pay."""
    reason: str
    """Why, as a sentence."""


def profile(config: TrainConfig, *, steps: int = 50, store: Store | None = None) -> Profile:
    """Trains a few steps without skipping and measures each phase.

    The lookup and its row gradients are measured by repeating them after the step (with warm caches); what is left of
    forward and backward pass is the dense part's. Batches in file order are views: reading them from the disk falls
    into whatever touches them first.

    Args:
        config: The training; its policy is left out.
        steps: Steps to measure, after five that do not count.
        store: Data that is open already; None: opens ``config.data``.

    Raises:
        ConfigError: ``steps`` is below 1, or the settings do not fit the data.
        DataError: The data cannot be used.
    """
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    config = config.resolved().model_copy(update={"policy": NoneConfig()})
    with thread_count(config.threads), torch.random.fork_rng(devices=()):
        store = open_data(config) if store is None else store
        warm_up(config, store)
        trainer = Trainer(config, store)
        batches = _endless(trainer)
        for _ in range(WARM_UP):
            _step(trainer, batches)
        measured = [_step(trainer, batches) for _ in range(steps)]
        seconds = {phase: median(step[place] for step in measured) for place, phase in enumerate(PHASES)}
        bounds = tuple(
            _bound(name, seconds, _overhead(name, trainer, batches, steps)) for name in POLICIES if _can_skip(name)
        )
    recommended, reason = recommend(seconds, bounds)
    return Profile(
        steps=steps,
        batch_size=config.batch_size,
        seconds=seconds,
        step_seconds=sum(seconds.values()),
        bounds=bounds,
        recommended=recommended,
        reason=reason,
    )


def _clock() -> float:
    """Seconds, once a GPU that is in use has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


class _Times(NamedTuple):
    """Seconds of each of ``PHASES``, in their order."""

    input: float
    lookup: float
    dense_forward: float
    dense_backward: float
    row_gradients: float
    row_update: float
    dense_optimizer: float


def _endless(trainer: Trainer) -> Iterator[Batch]:
    """Full batches of the training samples, over and over; all there are if they fill no batch."""
    config, (start, stop) = trainer.config, trainer.train_range
    seed = config.seed if config.shuffle else None
    size = min(config.batch_size, stop - start)
    while True:
        yield from trainer.store.batches(size, start=start, stop=stop, shuffle_seed=seed, drop_last=True)


def _step(trainer: Trainer, batches: Iterator[Batch]) -> _Times:
    config, model = trainer.config, trainer.model
    began = _clock()
    batch = trainer.sender.send(next(batches))
    given = _clock()
    calls: list[tuple[Any, ...]] = []
    hook = model.embeddings.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    with autocast(config.bf16, config.device):
        loss = model.loss(batch)
    hook.remove()
    forward = _clock()
    loss.backward()
    backward = _clock()
    if config.optimizer.clip is not None:
        clip_grad_norm_(model.parameters(), config.optimizer.clip)
    clipped = _clock()
    dense, rows = (_optimize(trainer.optimizers, tables=tables) for tables in (False, True))
    value = float(loss.detach())
    if value != value:
        raise ConfigError("the loss is not a number", remedy="lower the learning rates")
    _zero(trainer)
    lookup, gradients = _lookup(trainer, calls)
    return _Times(
        given - began,
        lookup,
        max(forward - given - lookup, 0.0),
        max(backward - forward - gradients, 0.0),
        gradients,
        rows,
        dense + clipped - backward,
    )


def _zero(trainer: Trainer) -> None:
    for optimizer in trainer.optimizers:
        optimizer.zero_grad(set_to_none=True)


def _optimize(optimizers: Sequence[torch.optim.Optimizer], *, tables: bool) -> float:
    """Seconds that the step of the tables' groups, or of the others, takes."""
    seconds = 0.0
    for optimizer in optimizers:
        groups = optimizer.param_groups
        wanted = [group for group in groups if group["tables"] == tables]
        if wanted:
            optimizer.param_groups = wanted
            began = _clock()
            try:
                optimizer.step()
            finally:
                seconds += _clock() - began
                optimizer.param_groups = groups
    return seconds


def _lookup(trainer: Trainer, calls: Sequence[tuple[Any, ...]]) -> tuple[float, float]:
    """Seconds of a step's lookups, given the arguments of each, and of their backward passes, alone."""
    embeddings = trainer.model.embeddings
    forward = backward = 0.0
    for arguments in calls:
        began = _clock()
        rows: Tensor = embeddings(*arguments)
        forward += _clock() - began
        gradient = torch.ones_like(rows)
        began = _clock()
        rows.backward(gradient)
        backward += _clock() - began
    _zero(trainer)
    if isinstance(embeddings, CachedEmbeddingCollection):  # no step follows, for which it would keep the rows
        embeddings.skip_step()
    return forward, backward


def _can_skip(name: str) -> bool:
    policy = build_policy(name)
    return policy.skips_inputs or policy.skips_rows


def _overhead(name: str, trainer: Trainer, batches: Iterator[Batch], steps: int) -> float:
    """Median seconds that deciding on a batch and packing what is kept takes; 0 where it cannot be had alone."""
    policy = build_policy(name)
    if not policy.skips_inputs or policy.skips_rows or policy.plans_order:
        return 0.0
    policy.warm_up()
    size, samples = trainer.config.batch_size, trainer.total_samples
    adds = trainer.skipper.adds_logit_offset
    skipper = Skipper(trainer.model, policy, batch_size=size, total_samples=samples, adds_logit_offset=adds)
    seconds: list[float] = []
    for number in range(WARM_UP + steps):
        batch = next(batches)
        began = _clock()
        for _ in skipper.push(batch):
            pass
        if number >= WARM_UP:
            seconds.append(_clock() - began)
    skipper.detach()
    return median(seconds)


def _bound(name: str, seconds: dict[str, float], overhead: float) -> Bound:
    policy = build_policy(name)
    skips = [word for word, does in (("inputs", policy.skips_inputs), ("rows", policy.skips_rows)) if does]
    bound = input_bound if policy.skips_inputs else row_bound
    return Bound(
        policy=name,
        skips=" and ".join(skips),
        overhead=overhead,
        speed_up={budget: bound(seconds, budget, overhead) for budget in BUDGETS},
    )


def input_bound(seconds: dict[str, float], budget: float, overhead: float = 0.0) -> float:
    """The most that training on a share of the inputs can save: handing out and deciding are paid for all of them.

    Args:
        seconds: Of each phase.
        budget: Share of the inputs trained on.
        overhead: Seconds of the decision on a full batch.
    """
    total = sum(seconds.values())
    return total / (seconds["input"] + overhead + budget * (total - seconds["input"]))


def row_bound(seconds: dict[str, float], budget: float, overhead: float = 0.0) -> float:
    """The most that doing a share of the row updates can save: forward and backward pass stay.

    Args:
        seconds: Of each phase.
        budget: Share of the row updates done.
        overhead: Seconds a step of the decisions.
    """
    total = sum(seconds.values())
    return total / (total - (1 - budget) * seconds["row update"] + overhead)


def recommend(seconds: dict[str, float], bounds: Sequence[Bound]) -> tuple[str | None, str]:
    """A policy, or None, and why.

    Row skipping is preferred where it can save as much as is worth it (every input still counts), then input skipping.

    Args:
        seconds: Of each phase.
        bounds: Of the policies there are.
    """
    at_half = {bound.policy: bound.speed_up[0.5] for bound in bounds}
    share = seconds["row update"] / sum(seconds.values())
    rule: tuple[tuple[Sequence[str], Callable[[float], str]], ...] = (
        (
            _ROWS,
            lambda best: f"row updates are {share:.0%} of a step: doing half of them is at most {best:.2f}x as fast",
        ),
        (
            _INPUTS,
            lambda best: (
                f"row updates are only {share:.0%} of a step, so only skipping whole inputs can pay: half of"
                f" them is at most {best:.2f}x as fast"
            ),
        ),
    )
    for names, words in rule:
        name = next((name for name in names if name in at_half), None)
        if name is not None and at_half[name] >= WORTH:
            return name, words(at_half[name])
    best = max(at_half.values(), default=1.0)
    return None, f"no policy can be more than {best:.2f}x as fast at half the work: not worth what it may cost"
