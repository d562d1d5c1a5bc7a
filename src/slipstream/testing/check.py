"""The rules that a policy must keep, checked in a small training."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.policies.base import Policy
from slipstream.testing.trial import Run, synthetic
from slipstream.testing.watch import check, equal


def check_policy(
    make_policy: Callable[[], Policy],
    *,
    budget: float | None = None,
    band: float = 0.1,
    decides_by_batch: bool = False,
    samples: int = 8_192,
    batch_size: int = 64,
    rows: int = 400,
    seed: int = 0,
) -> None:
    """Trains a small model on synthetic data with a policy, and checks that it keeps the rules of policies.

    The data has two one-hot features of skewed popularity, one dense column, a time, and labels that can be learned.
    The policy is made four times, so ``make_policy`` must return a new one each time; steps before its first decision
    should be well below ``samples / batch_size``.

    Args:
        make_policy: Makes the policy.
        budget: Share of the row updates that it should leave (inputs kept times updates done), over the second half of
            the training; None: not checked.
        band: Distance from ``budget`` that is accepted.
        decides_by_batch: Whether the probability of an input may depend on the others in its batch. Without, it must
            be the same in a smaller batch.
        samples: Samples of the training.
        batch_size: Samples of a step.
        rows: Rows of each of the two tables.
        seed: Seed of data, model and policy.

    Raises:
        AssertionError: A rule is broken; says which.
    """
    data = synthetic(samples, rows, seed)

    def run() -> Run:
        return Run(make_policy(), data, batch_size, rows, seed)

    first, second = run(), run()
    name = first.policy.name
    half = samples // batch_size // 2
    first.train(half)
    middle = first.work()
    saved = first.state()
    _check_plain(name, saved["skipper"]["policy_state"], "state_dict()")
    first.train()
    second.train()
    check(
        equal(first.trace, second.trace) and equal(first.gates(), second.gates()),
        name,
        "decides differently in two runs with the same seed: draw from the seed that attach gives",
    )

    third = run()
    third.load(saved)
    check(
        equal(third.policy.state_dict(), saved["skipper"]["policy_state"]),
        name,
        "has another state_dict() right after load_state_dict than the one that was loaded",
    )
    third.train()
    check(
        equal(third.trace, first.trace[saved["steps"] :]) and equal(third.gates(), first.gates()),
        name,
        "goes on differently after load_state_dict: state_dict() must hold all that decisions depend on",
    )

    if budget is not None:
        kept = first.share_since(middle)
        check(
            abs(kept - budget) <= band,
            name,
            f"leaves {kept:.3f} of the row updates in the second half, budget {budget} ± {band}",
        )
    _check_report(first.policy)
    _check_batching(first, second, decides_by_batch)
    _check_small_batches(first)
    _check_budget(run().policy)


def _check_plain(name: str, value: Any, where: str) -> None:
    """Tensors, numbers, texts, None, and dicts and lists of them."""
    if isinstance(value, dict):
        for key, entry in value.items():
            check(isinstance(key, str | int), name, f"has a key in {where} that is neither a text nor a number")
            _check_plain(name, entry, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            _check_plain(name, entry, f"{where}[{number}]")
    else:
        plain = value is None or isinstance(value, Tensor | bool | int | float | str)
        check(plain, name, f"has a {type(value).__name__} in {where}: only tensors and plain values can be saved")


def _check_report(policy: Policy) -> None:
    try:
        json.dumps(policy.report(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"policy {policy.name!r} has a report() that is not JSON: {error}") from error


def _check_batching(one: Run, two: Run, decides_by_batch: bool) -> None:
    """The two runs are in the same state."""
    if decides_by_batch or not one.policy.skips_inputs:
        return
    batch = next(one.pieces.batches(one.pieces.batch_size))
    size = len(batch) // 2
    whole, part = one.policy.keep_probability(batch), two.policy.keep_probability(batch.narrow(0, size))
    ones = torch.ones(len(batch))
    whole, part = ones if whole is None else whole, ones[:size] if part is None else part
    check(
        torch.equal(whole[:size], part),
        one.policy.name,
        "gives inputs other probabilities in a smaller batch; pass decides_by_batch=True if it means to",
    )


def _check_small_batches(run: Run) -> None:
    policy, batch = run.policy, next(run.pieces.batches(run.pieces.batch_size))
    for size in (0, 1):
        small = batch.narrow(0, size)
        try:
            if policy.skips_inputs:
                policy.keep_probability(small)
            for table in run.skipper.tables.values():
                policy.observe_lookups(table, small.inputs.ids[:, 0])
                policy.observe_lookups(table, small.inputs.ids[:, 0].long())
            if policy.wants_losses:
                policy.observe_losses(small, torch.zeros(size))
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"policy {policy.name!r} fails on a batch of {size}: {error!r}") from error


def _check_budget(policy: Policy) -> None:
    """Either the budget cannot change, or it can, and nonsense is refused."""
    try:
        policy.set_budget(0.5)
    except ConfigError:
        return
    except Exception as error:
        raise AssertionError(f"policy {policy.name!r} raises {error!r} in set_budget(0.5), not ConfigError") from error
    for nonsense in (0.0, -1.0, 1.5, float("nan")):
        try:
            policy.set_budget(nonsense)
        except ConfigError:
            continue
        except Exception as error:
            raise AssertionError(
                f"policy {policy.name!r} raises {error!r} in set_budget({nonsense}), not ConfigError"
            ) from error
        raise AssertionError(f"policy {policy.name!r} accepts a budget of {nonsense}, outside (0, 1]")
