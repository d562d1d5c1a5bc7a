"""The loop: what a training does with each batch. What comes before and after is in :mod:`slipstream.training.run`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slipstream.data.batch import Batch
from slipstream.data.batches import Batches
from slipstream.data.store import Store
from slipstream.evaluation import score
from slipstream.models import Recommender, build_model
from slipstream.optim import clip_grad_norm_
from slipstream.policies import Skipper, build_policy
from slipstream.training.config import TrainConfig
from slipstream.training.events import ChunkScored, EpochDone, Listener, StepDone, tell
from slipstream.training.nonfinite import MOST_IN_A_ROW, gradients_are_finite, nonfinite_error
from slipstream.training.optimizers import build_optimizers
from slipstream.training.predicting import autocast, labels_of, predict_range, set_table_dtype
from slipstream.training.ranges import check_labels, ranges
from slipstream.training.samples import StoredSamples
from slipstream.training.schedule import Schedule
from slipstream.training.state import load_tables, tables_state


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

    def set(self, seconds: float) -> None:
        """Pauses at a time measured before."""
        self._before, self._started = seconds, None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training stands: between two batches of the data, or about to predict."""

    epoch: int
    """Epochs finished."""
    samples: int
    """Samples of the data that have passed, all epochs together."""
    steps: int
    """Optimizer steps."""
    predicted: int
    """prequential: samples predicted so far, from the first on."""
    scoring: bool
    """holdout: the epoch's training is over, and the samples held out are to be scored next."""


class Trainer:
    """A training in progress.

    It can be saved at every boundary: between two batches, and before and while it predicts.

    Attributes:
        model: The model.
        optimizers: One, or two where dense part and tables have different ones.
        skipper: Carries out the policy.
        samples: Samples of the data that have passed, skipped ones included.
        steps: Optimizer steps so far.
        epoch: Epochs finished.
        nonfinite_batches: Batches left out because their loss or a gradient was not finite.
        training: Time spent training.
        predicting: Time spent predicting, not part of it.

    Args:
        config: The resolved configuration.
        store: The data.
        listeners: Called with every event.

    Raises:
        ConfigError: There is nothing to train on or to score, or the policy does not fit the model.
        DataError: The scored samples are of one class only.
    """

    def __init__(self, config: TrainConfig, store: Store, listeners: Sequence[Listener] = ()) -> None:
        self.config, self.store, self.listeners = config, store, tuple(listeners)
        end = min(store.num_samples, config.max_samples or store.num_samples)
        self.train_range, self.score_range = ranges(config, end)
        check_labels(store, *self.score_range)
        self.epoch_samples = self.train_range[1] - self.train_range[0]
        self.total_samples = self.epoch_samples * config.epochs
        torch.manual_seed(config.seed)
        self.model: Recommender = build_model(config.model, store.features, store.num_dense, engine=config.engine)
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
        )
        self.samples = self.steps = self.epoch = self.nonfinite_batches = 0
        self.training, self.predicting = Stopwatch(), Stopwatch()
        self._predicted, self._scoring = 0, False
        self._logits = np.empty(self.epoch_samples if config.mode == "prequential" else 0, dtype=np.float32)
        self._losses: list[float] = []
        self._in_a_row = 0
        self._batches: Batches | None = None
        self._at_boundary: Callable[[], None] = lambda: None

    @property
    def position(self) -> Position:
        """Where it stands."""
        return Position(self.epoch, self.samples, self.steps, self._predicted, self._scoring)

    @property
    def finished(self) -> bool:
        """Whether everything was trained on and scored."""
        return self.epoch >= self.config.epochs

    def run(
        self, at_boundary: Callable[[], None] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Trains, from wherever it stands.

        Args:
            at_boundary: Called wherever the training may be saved; what it raises ends the training there.

        Returns:
            Labels and logits of the scored samples, each ``[N]``.

        Raises:
            NonFiniteError: A loss or gradient is no longer finite.
            DataError: The data changed meanwhile.
        """
        if at_boundary is not None:
            self._at_boundary = at_boundary
        outcome = self._prequential() if self.config.mode == "prequential" else self._holdout()
        if self._losses:
            self._report_loss()
        return outcome

    def _planned(self) -> Batches:
        """The batches of an epoch (holdout), in the order that the policy plans."""
        if self._batches is None:
            start, stop = self.train_range
            self.training.start()
            order = self.skipper.policy.plan(StoredSamples(self.store, start, stop, self.config.batch_size))
            self.training.stop()
            seed = self.config.seed if self.config.shuffle else None
            self._batches = self.store.batches(
                self.config.batch_size, start=start, stop=stop, shuffle_seed=seed, order=order
            )
        return self._batches

    def _holdout(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        batches = self._planned()
        labels = labels_of(self.store, *self.score_range)
        while not self.finished:
            if not self._scoring:
                self.training.start()
                batches.epoch, batches.position = self.epoch, self.samples - self.epoch * self.epoch_samples
                self._train(batches, (self.epoch + 1) * self.epoch_samples)
                self._finish(self.skipper.flush())
                self.training.stop()
                self._scoring = True
            self._logits = self.predict(*self.score_range)
            self.epoch, self._scoring = self.epoch + 1, False
            event = EpochDone(self.epoch, self.samples, score(labels, self._logits), self.training.seconds)
            tell(self.listeners, event)
        return labels, self._logits

    def _prequential(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        start, stop = self.train_range
        labels, size = labels_of(self.store, start, stop), self.config.chunk_size
        while self.samples < stop:
            first = self.samples // size * size
            last = min(first + size, stop)
            if self._predicted < last:
                self._logits[first:last] = self.predict(first, last)
                self._predicted = last
                scores = score(labels[first:last], self._logits[first:last])
                tell(self.listeners, ChunkScored(self.samples, scores, self.training.seconds))
            self.training.start()
            self._train(self.store.batches(self.config.batch_size, start=self.samples, stop=last), last)
            self.training.stop()
        if not self.finished:
            self.training.start()
            self._finish(self.skipper.flush())
            self.training.stop()
            self.epoch += 1
        return labels[slice(*self.score_range)], self._logits[slice(*self.score_range)]

    def _train(self, batches: Iterable[Batch], end: int) -> None:
        """Trains on batches, until ``end`` samples have passed in all."""
        for batch in batches:
            self.store.check_unchanged()
            # The rates go by the data that passed before this batch, however many steps become of it.
            for kept in self.skipper.push(batch):
                self._step(kept)
            self.samples += len(batch)
            if self.samples < end:
                self._at_boundary()

    def _finish(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        self.schedule.set(self.steps, self.samples)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses: Tensor | None = None
        with autocast(self.config.bf16):
            if self.skipper.policy.wants_losses:
                losses = self.model.losses(batch)
                loss = (losses * batch.weights).mean()
            else:
                loss = self.model.loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            return self._leave_out(batch, f"the loss is {value}")
        if losses is not None:
            self.skipper.observe(batch, losses)
        loss.backward()
        if not gradients_are_finite(self.model):
            return self._leave_out(batch, "a gradient is not finite")
        if self.config.optimizer.clip is not None:
            clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1
        self._in_a_row = 0
        self._losses.append(value)
        if self.steps % self.config.log_every == 0:
            self._report_loss()

    def _leave_out(self, batch: Batch, what: str) -> None:
        """Stops at a batch that is not finite, or passes over it.

        Raises:
            NonFiniteError: So the configuration wants it, or too many came one after the other.
        """
        self._in_a_row += 1
        self.nonfinite_batches += 1
        if self.config.on_nonfinite == "stop" or self._in_a_row >= MOST_IN_A_ROW:
            raise nonfinite_error(self.model, batch, what, self.steps)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _report_loss(self) -> None:
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        rates = self.schedule.dense_lr, self.schedule.embedding_lr
        tell(self.listeners, StepDone(self.steps, self.samples, mean, *rates, self.training.seconds))

    def predict(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Logits of samples ``start`` to ``stop``, by the model as it is now; counted as prediction time."""
        self.predicting.start()
        logits = predict_range(
            self.model, self.store, start, stop, bf16=self.config.bf16, between=self._between_predictions
        )
        self.predicting.stop()
        return logits

    def _between_predictions(self) -> None:
        self.store.check_unchanged()
        self._at_boundary()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here: tensors, numbers, and dicts and lists of them."""
        done = self._predicted if self.config.mode == "prequential" else len(self._logits)
        return {
            **asdict(self.position),
            "training_seconds": self.training.seconds,
            "prediction_seconds": self.predicting.seconds,
            "rates": [self.schedule.dense_lr, self.schedule.embedding_lr],
            "losses": list(self._losses),
            "logits": torch.from_numpy(self._logits[:done]),
            "nonfinite_batches": self.nonfinite_batches,
            "nonfinite_in_a_row": self._in_a_row,
            "random": torch.get_rng_state(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "tables": tables_state(self.model),
            "skipper": self.skipper.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state`` was taken, in a trainer of the same configuration and data, before :meth:`run`.

        Raises:
            ConfigError: The state does not fit.
        """
        if self.config.mode == "holdout":
            self._planned()  # its outcome is what the state is of, and costs no memory in it
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        load_tables(self.model, state["tables"])
        self.skipper.load_state_dict(state["skipper"])
        self.samples, self.steps, self.epoch = (int(state[key]) for key in ("samples", "steps", "epoch"))
        self._predicted, self._scoring = int(state["predicted"]), bool(state["scoring"])
        self.training.set(float(state["training_seconds"]))
        self.predicting.set(float(state["prediction_seconds"]))
        self.schedule.dense_lr, self.schedule.embedding_lr = state["rates"]
        self._losses = list(state["losses"])
        if self.config.mode == "prequential":
            self._logits[: self._predicted] = state["logits"].numpy()
        else:
            self._logits = state["logits"].numpy()
        self.nonfinite_batches, self._in_a_row = int(state["nonfinite_batches"]), int(state["nonfinite_in_a_row"])
        torch.set_rng_state(state["random"])
