"""The loop: what a training does with each batch. What comes before and after is in :mod:`slipstream.training.run`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slipstream.data.batch import Batch
from slipstream.data.split import named_splits
from slipstream.data.store import Store
from slipstream.data.transfer import Sender, checked_device
from slipstream.embedding import CachedEmbeddingCollection, EmbeddingCollection
from slipstream.errors import ConfigError, DataError
from slipstream.evaluation import RankingScores, score
from slipstream.kernels import registry
from slipstream.models import Recommender, RowCacheOptions, build_model
from slipstream.optim import clip_grad_norm_
from slipstream.policies import Skipper, build_policy
from slipstream.training.config import HOLDOUT, TrainConfig
from slipstream.training.events import ChunkScored, EpochDone, Listener, PolicyMoved, StepDone, tell
from slipstream.training.hotline import hotline_step
from slipstream.training.optimizers import build_optimizers, state_elements
from slipstream.training.ranked import Ranker
from slipstream.training.samples import StoredSamples
from slipstream.training.schedule import Schedule

PREDICT_BATCH = 8192
"""Samples predicted at a time."""


class Stopwatch:
    """Adds up the time between :meth:`start` and :meth:`stop`."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """So far, a running measurement included."""
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def start(self) -> None:
        """Goes on."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Pauses."""
        self._before, self._started = self.seconds, None


class Trainer:
    """A training in progress.

    Attributes:
        model: The model.
        optimizers: One, or two where dense part and tables have different ones.
        skipper: Carries out the policy.
        samples: Samples of the data that have passed, skipped ones included: the position in the training.
        steps: Optimizer steps so far.
        epoch: Epochs finished.
        training: Time spent training.
        predicting: Time spent predicting and ranking, not part of it.
        ranking: Figures of the last epoch's ranked lists, for data of pairs.

    Args:
        config: The resolved configuration.
        store: The data.
        listeners: Called with every event.

    Raises:
        ConfigError: There is nothing to train on or to score, or the policy does not fit the model.
        DataError: The scored samples are of one class only, or (with ranked lists) hold no pair to rank.
    """

    def __init__(self, config: TrainConfig, store: Store, listeners: Sequence[Listener] = ()) -> None:
        self.config, self.store, self.listeners = config, store, tuple(listeners)
        end = min(store.num_samples, config.max_samples or store.num_samples)
        self.train_range, self.score_range = ranges(config, store, end)
        self.total_samples = (self.train_range[1] - self.train_range[0]) * config.epochs
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
        self.ranker = None
        if config.mode == "holdout":
            self.ranker = Ranker.of(self.model, store, self.train_range, self.score_range, config.ranking.k)
        self.ranking: RankingScores | None = None
        if self.ranker is None:
            _check_labels(store, *self.score_range)
        set_table_dtype(self.model, bf16=config.bf16)
        if config.compile:
            self.model.compile()
        self.optimizers = build_optimizers(self.model, config.optimizer, config.engine, seed=config.seed)
        self.schedule = Schedule(self.optimizers, config.schedule, self.total_samples)
        self.skipper = Skipper(
            self.model,
            build_policy(config.policy),
            batch_size=config.batch_size,
            seed=config.seed,
            total_samples=self.total_samples,
            losses=lambda model, batch: cast(Recommender, model).losses(batch),
        )
        self.skipper.policy.check_length(-(-self.total_samples // config.batch_size))
        self.samples = self.steps = self.epoch = 0
        self.training, self.predicting = Stopwatch(), Stopwatch()
        self._losses: list[float | Tensor] = []
        self._following: Batch | None = None  # what the data holds next, of which rows in host memory may be sent for

    def run(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Trains.

        Returns:
            Labels and logits of the scored samples, each ``[N]``.

        Raises:
            ConfigError: The loss is no longer finite.
        """
        outcome = self._prequential() if self.config.mode == "prequential" else self._holdout()
        if self._losses:
            self._report_loss()
        return outcome

    def _holdout(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        start, stop = self.train_range
        seed = self.config.seed if self.config.shuffle else None
        self.training.start()
        samples = StoredSamples(self.store, start, stop, self.config.batch_size)
        order = self.skipper.policy.plan(samples)
        self.training.stop()
        batches = self.store.batches(self.config.batch_size, start=start, stop=stop, shuffle_seed=seed, order=order)
        labels = labels_of(self.store, *self.score_range)
        logits = np.empty(0, dtype=np.float32)
        while self.epoch < self.config.epochs:
            self.training.start()
            self._train(self._runs(samples) if self.skipper.policy.plans_runs else batches)
            self._finish(self.skipper.flush())
            self.training.stop()
            self.epoch += 1
            logits = self.predict(*self.score_range)
            self._rank()
            event = EpochDone(self.epoch, self.samples, score(labels, logits), self.training.seconds, self.ranking)
            tell(self.listeners, event)
        return labels, logits

    def _rank(self) -> None:
        """Ranks the catalogue, in the epochs that do."""
        every, self.ranking = self.config.ranking.every, None
        if self.ranker is not None and (self.epoch == self.config.epochs or (every and self.epoch % every == 0)):
            self.predicting.start()
            self.ranking = self.ranker(self.model)
            self.predicting.stop()

    def _prequential(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        start, stop = self.train_range
        labels, logits = labels_of(self.store, start, stop), np.empty(stop - start, dtype=np.float32)
        for first in range(start, stop, self.config.chunk_size):
            last = min(first + self.config.chunk_size, stop)
            logits[first - start : last - start] = self.predict(first, last)
            scores = score(labels[first - start : last - start], logits[first - start : last - start])
            tell(self.listeners, ChunkScored(self.samples, scores, self.training.seconds))
            self.training.start()
            self._train(self.store.batches(self.config.batch_size, start=first, stop=last))
            self.training.stop()
        self.training.start()
        self._finish(self.skipper.flush())
        self.training.stop()
        self.epoch += 1
        low, high = (position - start for position in self.score_range)
        return labels[low:high], logits[low:high]

    def _runs(self, samples: StoredSamples) -> Iterator[Batch]:
        """The batches of an epoch whose order the policy decides run by run; testing is part of the training time."""
        policy = self.skipper.policy
        tested = samples.take(policy.test_positions())
        while (run := policy.next_run(self._mean_loss(tested))) is not None:
            for piece in run.split(self.config.batch_size):
                yield samples.take(piece)

    def _mean_loss(self, batch: Batch) -> float:
        with torch.inference_mode(), autocast(self.config.bf16, self.config.device):
            return float(self.model.losses(self.sender.send(batch)).mean())

    def _train(self, batches: Iterable[Batch]) -> None:
        # Reading ahead moves the data's position on, so it is done only where it is good for something.
        pairs = ((batch, None) for batch in batches) if self.cached is None else _with_next(batches)
        for batch, following in pairs:
            # The rates go by the data that passed before this batch, however many steps become of it.
            self._following = following
            for kept in self.skipper.push(batch):
                self._step(kept)
            self.samples += len(batch)

    def _finish(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        self.schedule.set(self.steps, self.samples)
        loss = self._back(batch)
        self.steps += 1
        # A GPU is not waited for in every step: its losses are looked at when they are reported.
        value = float(loss.detach()) if self.sender.device.type == "cpu" else loss.detach()
        if isinstance(value, float):
            self._check_losses([value], self.steps - 1)
        self._losses.append(value)
        if self.steps % self.config.log_every == 0:
            self._report_loss()

    def _back(self, batch: Batch) -> Tensor:
        """Forward, backward and the optimizers' step on a batch in host memory; returns the loss."""
        ahead = None if self._following is None else self._following.inputs
        if self.cached is not None and self.config.hotline:
            with autocast(self.config.bf16, self.config.device):
                return hotline_step(
                    self.model, self.cached, self.optimizers, batch, following=ahead, before_step=self._clip
                ).loss
        if self.cached is not None and ahead is not None:
            self.cached.look_ahead(ahead.ids, ahead.bags)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        sent = self.sender.send(batch)
        with autocast(self.config.bf16, self.config.device):
            if self.skipper.policy.wants_losses:
                losses = self.model.losses(sent)
                self.skipper.observe(batch, losses)
                self._report_moves()
                loss = (losses * sent.weights).mean()
            else:
                loss = self.model.loss(sent)
        loss.backward()
        self._clip()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def _clip(self) -> None:
        if self.config.optimizer.clip is not None:
            clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)

    def _check_losses(self, values: Sequence[float], before: int) -> None:
        for step, value in enumerate(values, start=before + 1):
            if not math.isfinite(value):
                raise ConfigError(f"the loss is {value} at step {step}", remedy="lower the learning rates")

    def _report_loss(self) -> None:
        values = [float(loss) for loss in self._losses]
        if self.sender.device.type != "cpu":
            self._check_losses(values, self.steps - len(values))
            registry.check_errors(self.sender.device)
        mean = sum(values) / len(values)
        self._losses.clear()
        rates = self.schedule.dense_lr, self.schedule.embedding_lr
        tell(self.listeners, StepDone(self.steps, self.samples, mean, *rates, self.training.seconds))

    def _report_moves(self) -> None:
        for move in self.skipper.policy.take_moves():
            tell(self.listeners, PolicyMoved(self.skipper.policy.name, move, self.training.seconds))

    def predict(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Logits of samples ``start`` to ``stop``, by the model as it is now; counted as prediction time."""
        self.predicting.start()
        logits = predict_range(self.model, self.store, start, stop, bf16=self.config.bf16)
        self.predicting.stop()
        return logits

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here: tensors, numbers, and dicts and lists of them."""
        return {
            "samples": self.samples,
            "steps": self.steps,
            "epoch": self.epoch,
            "training_seconds": self.training.seconds,
            "prediction_seconds": self.predicting.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "skipper": self.skipper.state_dict(),
        }


def ranges(config: TrainConfig, store: Store, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Samples to train on and samples to score, of the first ``end`` samples.

    Raises:
        ConfigError: One of them is empty.
    """
    if config.mode == "prequential":
        train = (0, end)
        scored = (config.score_from, min(config.score_to or end, end))
    else:
        cut = end - round(end * (config.holdout or HOLDOUT))
        test = named_splits(store).get("test")
        if config.holdout is None and test is not None and test[0] < end:
            cut = test[0]
        train, scored = (0, cut), (cut, end)
    for name, (start, stop) in (("train on", train), ("score", scored)):
        if stop <= start:
            raise ConfigError(
                f"there are no samples to {name}", remedy="use more samples, or change holdout or score_from"
            )
    return train, scored


def _with_next(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Batch | None]]:
    """Each batch with the one after it, or None after the last."""
    iterator = iter(batches)
    batch = next(iterator, None)
    while batch is not None:
        following = next(iterator, None)
        yield batch, following
        batch = following


def _check_labels(store: Store, start: int, stop: int) -> None:
    """Raise DataError unless both classes occur: found after the training, it would cost the training."""
    positive = labels_of(store, start, stop) > 0.5
    if positive.all() or not positive.any():
        raise DataError(
            f"samples {start} to {stop}, which are scored, all have the same label",
            file=store.path,
            remedy="score more samples",
        )


def autocast(bf16: bool, device: str = "cpu") -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 on a kind of device, or nothing."""
    return torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext()


def set_table_dtype(model: Recommender, *, bf16: bool) -> None:
    """Has our tables hand out bfloat16 or float32 rows."""
    if isinstance(model.embeddings, EmbeddingCollection | CachedEmbeddingCollection):
        model.embeddings.out_dtype = torch.bfloat16 if bf16 else None


def labels_of(store: Store, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Labels of samples ``start`` to ``stop``, copied."""
    return store.labels[start:stop].numpy().astype(np.float32)


def predict_range(model: Recommender, store: Store, start: int, stop: int, *, bf16: bool = False) -> Any:
    """Logits of samples ``start`` to ``stop``, float32 ``[stop - start]``; nothing is trained."""
    logits = np.empty(stop - start, dtype=np.float32)
    was_training, device = model.training, next(model.parameters()).device
    sender = Sender(device, keep_ids=isinstance(model.embeddings, CachedEmbeddingCollection))
    model.eval()
    with torch.inference_mode(), autocast(bf16, device.type):
        for batch in store.batches(PREDICT_BATCH, start=start, stop=stop):
            first = int(batch.index[0]) - start
            # forward, not __call__: the compiled model is kept for the batch size it was compiled for.
            scores: Tensor = model.forward(sender.send(batch).inputs)
            logits[first : first + len(batch)] = scores.float().cpu().numpy()
    model.train(was_training)
    return logits
