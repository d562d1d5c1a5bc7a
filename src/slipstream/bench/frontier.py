"""Quality against wall-clock time: policy x budget x seed on one data set, full training and random skipping in it.

``slipstream bench frontier --data movietweetings --policies psse --json FILE --html FILE``. Seconds are those of the
training with every overhead (data, policy, scout, optimizer). Rates are
tuned for each policy and budget on a prefix of the data, with one seed, on samples that are not scored in the end.
Trainings of one seed alternate over the policies, so that a slow phase of the machine hits all alike.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from slipstream.bench import BenchOptions
from slipstream.bench.frontier_data import training_of
from slipstream.bench.frontier_options import FrontierOptions
from slipstream.bench.frontier_policies import chosen, has_budget, with_policy
from slipstream.bench.frontier_tune import BATCHES, REACH, TUNED_ON, Choice, Trial, best, final_of, prefix_of, tune
from slipstream.data.store import Store
from slipstream.errors import ConfigError
from slipstream.report.frontier import TOLERANCE, derived, measure
from slipstream.report.record import Record
from slipstream.training import Result, TrainConfig, train
from slipstream.training.run import open_data

QUICK_SAMPLES = 20_000
QUICK_REACH, QUICK_BATCHES = 2.0, (1.0,)


class Place(NamedTuple):
    """A policy at a budget."""

    policy: str
    budget: float
    like_full: bool = False
    """With the batch size that full training chose, where the policy's own choice is another: what skipping alone does
    to time, for smaller batches buy quality with time."""

    @property
    def name(self) -> str:
        """What its points call the policy."""
        return f"{self.policy}, batch of full" if self.like_full else self.policy

    def __str__(self) -> str:
        """Name and budget, as in ``random 0.5``."""
        return f"{self.name} {self.budget:g}"


@dataclass
class Frontier:
    """A frontier being measured.

    Attributes:
        config: The training without skipping.
        store: The data.
        options: What is measured.
        reach: Largest factor on the learning rates that is tried, and one over the smallest.
        batches: Factors on the batch size that are tried.
        choices: What the tuning chose, by place.
        trials: What it tried.
        points: Trainings done, as :mod:`slipstream.report.frontier` reads them.
        left_out: Places that do not fit the data or diverged, with the reason.
    """

    config: TrainConfig
    store: Store
    options: FrontierOptions
    reach: float = REACH
    batches: tuple[float, ...] = BATCHES
    choices: dict[Place, Choice] = field(default_factory=dict)
    trials: dict[Place, list[Trial]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples of the data that are used."""
        return min(self.store.num_samples, self.config.max_samples or self.store.num_samples)

    def places(self) -> Iterator[Place]:
        """All places, full training first, then by budget, policies alternating."""
        names = chosen(self.options.policies)
        for name in names:
            if not has_budget(name):
                yield Place(name, 1.0)
        for budget in self.options.budgets:
            for name in names:
                if has_budget(name):
                    yield Place(name, budget)

    def tune(self) -> None:
        """Chooses rates for every place; those that cannot be trained go to ``left_out``."""
        prefix = prefix_of(self.config, self.store, self.samples)
        for place in self.places():
            try:
                config = with_policy(prefix, place.policy, place.budget, prefix.max_samples or self.samples)
                with_policy(self.config, place.policy, place.budget, self.samples)
                if self.options.tune:
                    decays = self.options.embedding_decays
                    self.trials[place] = tune(config, decays, self.store, self.batches, self.reach)
                    self.choices[place] = best(self.trials[place])
                else:
                    self.choices[place] = Choice(embedding_decay=self.config.schedule.embedding)
            except ConfigError as error:
                self.left_out[str(place)] = str(error)
        self._like_full()

    def _like_full(self) -> None:
        """Adds the places that take full training's batch size instead of their own."""
        full = next((choice for place, choice in self.choices.items() if place.policy == "none"), None)
        for place, choice in list(self.choices.items()):
            alike = [trial for trial in self.trials.get(place, ()) if full and trial.choice.batch == full.batch]
            if full is not None and choice.batch != full.batch and any(trial.quality is not None for trial in alike):
                self.choices[place._replace(like_full=True)] = best(alike)

    def measure(self, after_seed: Callable[[], object] = lambda: None, *, until: float = math.inf) -> None:
        """Trains every place with every seed, policies alternating within a seed.

        Args:
            after_seed: Called after each seed.
            until: Trainings that would begin later, by ``perf_counter``, are left out.
        """
        for seed in range(self.config.seed, self.config.seed + self.options.seeds):
            for place, choice in self.choices.items():
                if perf_counter() > until:
                    self.left_out[f"{place}, seed {seed}"] = "no time was left"
                    continue
                base = final_of(self.config.model_copy(update={"seed": seed}), self.samples)
                config = choice.apply(with_policy(base, place.policy, place.budget, self.samples))
                try:
                    self.points.append(_point(place, choice, config, train(config, store=self.store)))
                except ConfigError as error:
                    # A rate that held on the prefix may diverge later; hours of other trainings stay.
                    self.left_out[f"{place}, seed {seed}"] = str(error)
            after_seed()


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``frontier`` says what; ``quick`` takes 20,000 samples, the middle budget, two seeds and few rates, and
            serves to see that it works, not to quote.

    Returns:
        ``points``: every training. ``rows``: means by policy and budget. ``ratios``: time that each policy saves at
        equal quality. ``quality``: AUC (NDCG for data of pairs) of full training and, by policy, the difference
        closest to it.

    Raises:
        ConfigError: There is no such policy, or full training diverged.
        DataError: There is no such data.
    """
    wanted = options.frontier or FrontierOptions()
    chosen(wanted.policies)
    if options.quick:
        wanted = replace(wanted, samples=wanted.samples or QUICK_SAMPLES, seeds=2)
        wanted = replace(wanted, budgets=(sorted(wanted.budgets)[len(wanted.budgets) // 2],))
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        folder = Path(options.cache or temporary)
        config = training_of(wanted, folder, seed=options.seed, threads=options.threads).resolved()
        frontier = Frontier(config, open_data(config), wanted)
        if options.quick:
            frontier.reach, frontier.batches = QUICK_REACH, QUICK_BATCHES
        frontier.tune()
        partial = wanted.partial
        frontier.measure(lambda: partial and _record(frontier, quick=options.quick).save(partial))
        return _record(frontier, quick=options.quick)


def _point(place: Place, choice: Choice, config: TrainConfig, result: Result) -> dict[str, Any]:
    return {
        "policy": place.name,
        "budget": place.budget,
        "seed": config.seed,
        "auc": result.auc,
        "log_loss": result.log_loss,
        "calibration": result.calibration,
        "seconds": result.seconds,
        "samples_scored": result.samples_scored,
        "steps": result.steps,
        "share_of_inputs_trained": result.share_of_inputs_trained,
        "share_of_row_updates_skipped": result.share_of_row_updates_skipped,
        "by_popularity": {name: scores.model_dump(mode="json") for name, scores in result.by_popularity.items()},
        "new_items": {name: scores.model_dump(mode="json") for name, scores in result.new_items.items()},
        "coverage": None if result.diversity is None else result.diversity.coverage,
        "gini": None if result.diversity is None else result.diversity.gini,
        **_ranked(result),
        "lr": config.optimizer.lr,
        "embedding_lr": config.optimizer.embedding_lr or config.optimizer.lr,
        "batch_size": config.batch_size,
        "embedding_decay": config.schedule.embedding,
        "rate_factor": choice.rate,
    }


def _ranked(result: Result) -> dict[str, Any]:
    """Figures of ranked lists, if there are any."""
    if (ranking := result.ranking) is None:
        return {}
    return {
        "ndcg": ranking.ndcg,
        "recall": ranking.recall,
        "k": ranking.k,
        "users": ranking.users,
        "recall_by_popularity": ranking.recall_by_popularity,
    }


def _record(frontier: Frontier, *, quick: bool) -> Record:
    config, options, points = frontier.config, frontier.options, frontier.points
    by = measure(points)
    if not any(point["policy"] == "none" for point in points):
        raise ConfigError("full training diverged or does not fit: there is nothing to compare with")
    ends = {frontier.reach, 1.0 / frontier.reach}
    at_edge = [str(place) for place, choice in frontier.choices.items() if choice.rate in ends]
    name = options.data if not Path(options.data).exists() else Path(options.data).stem
    return Record(
        name="_".join(("frontier", name, *filter(None, (options.mode, options.model)))).replace("-", "_"),
        dataset=f"{name}, {frontier.samples:,} samples, fingerprint {frontier.store.fingerprint[:16]}",
        conditions={
            "quick": quick,
            "mode": config.mode,
            "samples": frontier.samples,
            "samples scored": points[0]["samples_scored"],
            "seeds": options.seeds,
            "model": config.model.model_dump(mode="json"),
            "optimizer": config.optimizer.model_dump(mode="json"),
            "schedule": config.schedule.model_dump(mode="json"),
            "batch size": config.batch_size,
            "rate factors": f"1, doubled or halved while it helps, up to {frontier.reach:g}" if options.tune else "1",
            "batch factors, the next while the last helped": list(frontier.batches) if options.tune else [1.0],
            "batch of full": "the policy at the best of its rates with the batch size that full training chose",
            "split": frontier.store.manifest.provenance.get("split"),
            "epochs": config.epochs,
            "embedding decays tried": list(options.embedding_decays),
            "tuned on": TUNED_ON[config.mode] if options.tune else "–",
            "chosen at the furthest rate": at_edge if options.tune else [],
            "tuning": {
                str(place): [{**trial.choice._asdict(), by.key: trial.quality} for trial in trials]
                for place, trials in frontier.trials.items()
            },
            "left out": frontier.left_out,
            "equal quality": f"mean {by.title} at most {TOLERANCE} below full training's",
            "spread": "sample standard deviation over the seeds, differences seed by seed",
            "not counted": "scoring, and loading of compiled kernels",
        },
        points=points,
        **derived(points),
    )
