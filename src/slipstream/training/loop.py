"""The loop: what a training does with each batch. What comes before and after is in :mod:`slipstream.training.run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slipstream.data.batch import Batch
from slipstream.data.batches import Batches
from slipstream.data.store import Store
from slipstream.data.transfer import Sender, checked_device
from slipstream.distributed import over_ranks
from slipstream.embedding import CachedEmbeddingCollection
from slipstream.evaluation import RankingScores, score
from slipstream.models import Recommender, RowCacheOptions, build_model
from slipstream.policies import Skipper, build_policy
from slipstream.restored import checked_positions, copy_into, finite_number
from slipstream.training.config import TrainConfig
from slipstream.training.events import ChunkScored, EpochDone, Listener, tell
from slipstream.training.noting import Notes
from slipstream.training.optimizers import build_optimizers, state_elements
from slipstream.training.position import Position, Stopwatch
from slipstream.training.predicting import autocast, labels_of, predict_range, set_table_dtype
from slipstream.training.ranges import check_label_range, check_labels, check_negatives, ranges
from slipstream.training.ranked import Ranker
from slipstream.training.ranks import Ranks
from slipstream.training.reports import Reports
from slipstream.training.samples import StoredSamples, planned_order, with_next
from slipstream.training.schedule import Schedule
from slipstream.training.state import check_optimizer, load_tables, tables_state
from slipstream.training.step import Step

DECIDED = 2048
"""Samples on which an input policy decides at a time, as near as whole batches come to it.

At most a hundredth of the training: deciding on few costs nearly as much as on many, and rates follow these pieces.
"""

Outcome = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Labels and logits of the scored samples, each ``[N]``."""


def _losses(config: TrainConfig, sender: Sender, model: nn.Module, batch: Batch) -> Tensor:
    """Those of a copy of the model, computed as the training computes them; of no Trainer, which would own itself."""
    with autocast(config.bf16, config.device):
        return cast(Recommender, model).losses(sender.send(batch))


class Trainer:
    """A training in progress.

    It can be saved at every boundary: between two batches, and before and while it predicts. On a GPU or with a row
    cache it cannot be saved.

    Attributes:
        model: The model.
        optimizers: One, or two where dense part and tables have different ones.
        skipper: Carries out the policy.
        samples: Samples of the data that have passed, skipped ones included.
        steps: Optimizer steps so far.
        epoch: Epochs finished.
        ranking: Figures of the last epoch's ranked lists, for data of pairs.
        training: Time spent training.
        predicting: Time spent predicting and ranking, not part of it.

    Args:
        config: The resolved configuration.
        store: The data.
        listeners: Called with every event.
        ranks: The processes that share the training; None: this one alone.

    Raises:
        ConfigError: There is nothing to train on or to score, the policy does not fit the model, or the training cannot
            be shared.
        DataError: The scored samples are of one class only, or (with ranked lists) hold no pair to rank; or there are
            positives alone, and the model's loss is cross-entropy.
    """

    def __init__(
        self, config: TrainConfig, store: Store, listeners: Sequence[Listener] = (), ranks: Ranks | None = None
    ) -> None:
        self.config, self.store, self.listeners, self.ranks = config, store, tuple(listeners), ranks
        end = min(store.num_samples, config.max_samples or store.num_samples)
        self.train_range, self.score_range = ranges(config, store, end)
        self.epoch_samples = self.train_range[1] - self.train_range[0]
        self.total_samples = self.epoch_samples * config.epochs
        torch.manual_seed(config.seed)
        device = checked_device(config.device)
        cache = None
        if config.row_cache_bytes is not None:
            elements = state_elements(config.optimizer, config.model.embedding_dim)
            cache = RowCacheOptions(config.row_cache_bytes, elements, device)
        self.sender = Sender(device, keep_ids=cache is not None)
        model = build_model(config.model, store.features, store.num_dense, engine=config.engine, cache=cache)
        self.model: Recommender = model.to(device)
        tables = model.embeddings
        self.cached = tables if isinstance(tables, CachedEmbeddingCollection) else None
        if self.model.adds_logit_offset:
            check_label_range(store)
            if config.continue_from is None:
                check_negatives(store)
        self.ranker = None
        if config.mode == "holdout":
            self.ranker = Ranker.of(self.model, store, self.train_range, self.score_range, config.ranking.k)
        self.ranking: RankingScores | None = None
        if self.ranker is None:
            check_labels(store, *self.score_range)
        set_table_dtype(self.model, bf16=config.bf16)
        if config.compile:
            self.model.compile()
        self.optimizers = build_optimizers(self.model, config.optimizer, config.engine, seed=config.seed)
        self.schedule = Schedule(self.optimizers, config.schedule, self.total_samples)
        policy = build_policy(config.policy)
        if ranks is not None:
            ranks.check(config, self.model)
            ranks.broadcast_model(self.model)
            policy = over_ranks(policy)
        self.skipper = Skipper(
            self.model,
            policy,
            batch_size=config.batch_size,
            seed=config.seed,
            total_samples=self.total_samples,
            losses=partial(_losses, config, self.sender),
            adds_logit_offset=self.model.adds_logit_offset and store.labels.dtype == torch.uint8,
        )
        self.skipper.policy.check_length(-(-self.total_samples // config.batch_size))
        self.training, self.predicting = Stopwatch(), Stopwatch()
        self._reports = Reports(self)
        moved = self._reports.moves
        self.step = Step(config, self.model, self.optimizers, self.skipper, self.sender, self.training, moved, ranks)
        self.samples = self.steps = self.epoch = 0
        self._predicted, self._scoring = 0, False
        self._logits = np.empty(self.epoch_samples if config.mode == "prequential" else 0, dtype=np.float32)
        self._following: Batch | None = None  # what the data holds next, of which rows in host memory may be sent for
        self._run = torch.empty(0, dtype=torch.int64)  # what is left of the run at hand, where the policy plans runs
        self._notes = Notes(self)
        self._batches: Batches | None = None
        self._at_boundary: Callable[[], bool] = lambda: False
        self.earlier_data: list[str] = []
        """Fingerprints of what the runs that this one continues were trained on."""

    @property
    def position(self) -> Position:
        """Where it stands."""
        return Position(self.epoch, self.samples, self.steps, self._predicted, self._scoring)

    @property
    def finished(self) -> bool:
        """Whether everything was trained on and scored."""
        return self.epoch >= self.config.epochs

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Training time by phase; nothing on a GPU, where a phase ends when it is sent and not when it is done."""
        return dict(self.training.laps) if self.sender.device.type == "cpu" and not self.config.hotline else {}

    @property
    def savable(self) -> bool:
        """Whether it can be saved and resumed."""
        return self.cached is None and self.sender.device.type == "cpu"

    def run(self, at_boundary: Callable[[], bool] | None = None) -> Outcome:
        """Trains, from wherever it stands.

        Args:
            at_boundary: Called wherever the training may be saved; says whether it was. What it raises ends the
                training there.

        Returns:
            Labels and logits of the scored samples, each ``[N]``.

        Raises:
            NonFiniteError: A loss or gradient is no longer finite.
            DataError: The data changed meanwhile.
        """
        if at_boundary is not None:
            self._at_boundary = at_boundary
        outcome = self._prequential() if self.config.mode == "prequential" else self._holdout()
        self.store.check_unchanged()  # the result is going to be of it, too
        self._reports.flush()
        if self.ranks is not None:
            self.ranks.ledger.finish(self.skipper.inputs_kept, self._all_samples(), self.config.epochs)
        return outcome

    @property
    def _read_size(self) -> int:
        """Samples that are read, and decided on, at a time."""
        size, policy = self.config.batch_size, self.skipper.policy
        several = policy.skips_inputs and policy.decides_alone and not policy.plans_runs and self.cached is None
        return size * max(1, min(DECIDED, self.total_samples // 100) // size) if several else size

    def _all_samples(self) -> range | None:
        """The samples of an epoch, where all of them were trained on."""
        skipper = self.skipper
        whole = skipper.inputs_kept == skipper.inputs_seen and not skipper.policy.plans_runs
        return range(*self.train_range) if whole else None

    def _samples(self) -> StoredSamples:
        return StoredSamples(self.store, *self.train_range, self.config.batch_size)

    def _planned(self) -> Batches:
        """The batches of an epoch (holdout), in the order that the policy plans."""
        if self._batches is None:
            start, stop = self.train_range
            self.training.start()
            order = planned_order(self.skipper, self._samples())
            self.training.stop()
            seed = self.config.seed if self.config.shuffle else None
            self._batches = self.store.batches(self._read_size, start=start, stop=stop, shuffle_seed=seed, order=order)
        return self._batches

    def _holdout(self) -> Outcome:
        batches = self._planned()
        labels = labels_of(self.store, *self.score_range)
        while not self.finished:
            if not self._scoring:
                self.training.start()
                if self.skipper.policy.plans_runs:
                    self._train(self._runs(self._samples()), self.total_samples)
                else:
                    batches.epoch, batches.position = self.epoch, self.samples - self.epoch * self.epoch_samples
                    self._train(batches, (self.epoch + 1) * self.epoch_samples)
                self._finish(self.skipper.flush())
                self.training.stop()
                self._scoring = True
            self._logits = self.predict(*self.score_range)
            self.epoch, self._scoring = self.epoch + 1, False
            self._rank()
            if self.listeners:
                scores = score(labels, self._logits)
                event = EpochDone(self.epoch, self.samples, scores, self.training.seconds, self.ranking)
                tell(self.listeners, event)
        return labels, self._logits

    def _rank(self) -> None:
        """Ranks the catalogue, in the epochs that do."""
        every, self.ranking = self.config.ranking.every, None
        if self.ranks is not None and not self.ranks.first:
            return
        if self.ranker is not None and (self.epoch == self.config.epochs or (every and self.epoch % every == 0)):
            self.predicting.start()
            self.ranking = self.ranker(self.model)
            self.predicting.stop()

    def _prequential(self) -> Outcome:
        start, stop = self.train_range
        labels, size = labels_of(self.store, start, stop), self.config.chunk_size
        while self.samples < stop:
            first = self.samples // size * size
            last = min(first + size, stop)
            if self._predicted < last:
                self._logits[first:last] = self.predict(first, last)
                self._predicted = last
                if self.listeners:
                    scores = score(labels[first:last], self._logits[first:last])
                    tell(self.listeners, ChunkScored(self.samples, scores, self.training.seconds))
            self.training.start()
            self._train(self.store.batches(self._read_size, start=self.samples, stop=last), last)
            self.training.stop()
        if not self.finished:
            self.training.start()
            self._finish(self.skipper.flush())
            self.training.stop()
            self.epoch += 1
        return labels[slice(*self.score_range)], self._logits[slice(*self.score_range)]

    def _runs(self, samples: StoredSamples) -> Iterator[Batch]:
        """The batches of an epoch whose order the policy decides run by run; testing is part of the training time."""
        policy, size = self.skipper.policy, self.config.batch_size
        tested = samples.take(policy.test_positions())
        run: Tensor | None = self._run  # not empty where a saved training goes on
        while run is not None:
            for piece in run.split(size) if len(run) else ():
                run = self._run = run[len(piece) :]
                yield samples.take(piece)
            run = policy.next_run(self._mean_loss(tested))

    def _mean_loss(self, batch: Batch) -> float:
        with torch.inference_mode(), autocast(self.config.bf16, self.config.device):
            return float(self.model.losses(self.sender.send(batch)).mean())

    def _train(self, batches: Iterable[Batch], end: int) -> None:
        """Trains on batches; while fewer than ``end`` samples have passed in all, it may be saved after each."""
        # To make a batch reads the data's files, so there is a look at them before, after whatever takes time.
        self.store.check_unchanged()
        # Reading ahead moves the data's position on, so it is done only where it is good for something.
        pairs = ((batch, None) for batch in batches) if self.cached is None else with_next(batches)
        for batch, following in pairs:
            # The rates go by the data that passed before this batch, however many steps become of it.
            self._following = following
            self.training.lap("input")
            looked = False
            for kept in self.skipper.push(batch):
                self.training.lap("policy")
                self._step(kept)
                self.store.check_unchanged()
                looked = True
            self.training.lap("policy")
            self.samples += len(batch)
            self._notes.take(self.samples - len(batch))
            saved = self.samples < end and self._at_boundary()
            if saved or not looked:
                self.store.check_unchanged()
            self.training.lap()

    def _finish(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        self.schedule.set(self.steps, self.samples)
        loss = self.step(batch, self.steps, None if self._following is None else self._following.inputs)
        if loss is None:
            return
        self.steps += 1
        self._reports.add(loss)
        self.training.lap()

    def predict(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Logits of samples ``start`` to ``stop``, by the model as it is now; counted as prediction time."""
        self.predicting.start()
        first, last = (start, stop) if self.ranks is None else self.ranks.share(start, stop)
        logits = predict_range(
            self.model, self.store, first, last, bf16=self.config.bf16, between=self._between_predictions
        )
        if self.ranks is not None:
            logits = self.ranks.gather(logits, stop - start)
        self.predicting.stop()
        return logits

    def _between_predictions(self) -> None:
        if self.ranks is None:  # ranks have not the same number of batches to predict
            self._at_boundary()
        self.store.check_unchanged()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here: tensors, numbers, and dicts and lists of them.

        Where the training is shared, every rank must call it, and gets the same.
        """
        if self.ranks is not None:
            self.ranks.ledger.check()
        done = self._predicted if self.config.mode == "prequential" else len(self._logits)
        return {
            **asdict(self.position),
            "training_seconds": self.training.seconds,
            "phase_seconds": dict(self.training.laps),
            "prediction_seconds": self.predicting.seconds,
            "rates": [self.schedule.dense_lr, self.schedule.embedding_lr],
            "losses": self._reports.losses(),
            "logits": torch.from_numpy(self._logits[:done]),
            **self.step.state_dict(),
            "random": torch.get_rng_state(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "tables": tables_state(self.model),
            "skipper": self.skipper.state_dict(),
            **({"run": self._run} if self.skipper.policy.plans_runs else {}),
            **({} if self.ranks is None else {"ledger": self.ranks.ledger.state()}),
        }

    def plan(self) -> None:
        """Has the policy plan the order of an epoch (holdout), once.

        A state is of its outcome, which costs no memory in it.
        """
        if self.config.mode == "holdout":
            self._planned()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state`` was taken, in a trainer of the same configuration and data, before :meth:`run`.

        Raises:
            ConfigError: The state does not fit.
        """
        self.plan()
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            # The groups' settings are the configuration's, and rates are set before each step.
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
            check_optimizer(optimizer)
        load_tables(self.model, state["tables"])
        self.skipper.load_state_dict(state["skipper"])
        if "run" in state:
            self._run = checked_positions(state["run"], "run", self.epoch_samples)
        position = Position(*(state[field.name] for field in fields(Position)))
        position.check(self.config.epochs, self.total_samples)
        self.epoch, self.samples, self.steps = position.epoch, position.samples, position.steps
        self._predicted, self._scoring = position.predicted, position.scoring
        self.training.set(finite_number(state, "training_seconds"), state.get("phase_seconds", {}))
        self.predicting.set(finite_number(state, "prediction_seconds"), {})
        rates = state["rates"]
        self.schedule.dense_lr, self.schedule.embedding_lr = (finite_number(rates, i, of="rates ") for i in (0, 1))
        self._reports.load(state["losses"])
        logits = torch.from_numpy(self._logits[: self._predicted])
        if self.config.mode == "holdout":
            scored = self.score_range[1] - self.score_range[0]
            logits = torch.empty(scored if self.epoch or len(state["logits"]) else 0)
            self._logits = logits.numpy()
        copy_into(logits, state["logits"], "logits")
        self.step.load_state_dict(state)
        if self.ranks is not None:
            self.ranks.ledger.load(state.get("ledger"))
        torch.set_rng_state(state["random"])
