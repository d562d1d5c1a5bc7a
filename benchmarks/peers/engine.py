"""Our own trainer as a contestant, and the published systems that are configurations of it.

``settings`` is a tree of :class:`slipstream.training.TrainConfig` without its data, and ``system``: the name of a
published system to make of it (``slipstream.systems``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.peers.loops import Stepper
from benchmarks.peers.pairs import Vectors
from benchmarks.peers.protocol import Fit, Fitted, Job, Point

from slipstream import systems
from slipstream.cli.settings import validate
from slipstream.data.batch import Batch
from slipstream.data.store import Store
from slipstream.report.machine import versions as all_versions
from slipstream.training import ChunkScored, EpochDone, Event, TrainConfig, Trainer
from slipstream.training.predicting import autocast, predict_range
from slipstream.training.run import thread_count
from slipstream.training.warm_up import warm_up


def versions() -> dict[str, str]:
    """Of our package and those under it."""
    return all_versions()


def make(job: Job) -> Engine:
    """The contestant."""
    torch.set_num_threads(job.threads)
    return Engine(job)


class Engine(Stepper):
    """See the module.

    Args:
        job: Its data folder holds ``store``, the column store.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        settings = dict(job.settings)
        system = settings.pop("system", None)
        self.store = Store.open(Path(job.data) / "store")
        settings |= {"data": str(self.store.path), "seed": job.seed, "threads": job.threads, "epochs": job.epochs}
        settings["max_samples"] = job.test[1]
        if settings.get("mode") == "prequential":
            settings |= {"score_from": job.test[0], "score_to": job.test[1]}
        else:
            settings["holdout"] = (job.test[1] - job.test[0]) / job.test[1]
        config = validate(TrainConfig, settings)
        self.config = (systems.configure(system, config) if system else config).resolved()
        with thread_count(job.threads):
            warm_up(self.config, self.store)
        self.events: list[Event] = []
        self.trainer = Trainer(self.config, self.store, [self._listen])
        self.batch_size = self.config.batch_size
        self.rows = sum(feature.num_rows for feature in self.store.features)
        self.batches: Any = iter(())
        self.vectors: Vectors | None = None
        self.before = 0.0
        if self.config.compile:
            self._compile()

    def _compile(self) -> None:
        """Compiles before any clock runs, as for the peers: one batch whose gradients are thrown away."""
        self.rewind()
        batch, _ = self.next()
        assert batch is not None
        self.backward(self.forward(batch))
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def table_bytes(self) -> int:
        """Tables and their state, as the optimizer holds it."""
        tables = {id(weight): weight for weight in self.trainer.model.embeddings.parameters()}
        state = [
            tensor.nbytes
            for optimizer in self.trainer.optimizers
            for weight, entry in optimizer.state.items()
            if id(weight) in tables
            for tensor in entry.values()
            if isinstance(tensor, torch.Tensor) and tensor.dim()
        ]
        return sum(weight.nbytes for weight in tables.values()) + sum(state)

    def fit(self, request: Fit) -> Fitted:
        """Trains by the trainer's own loop; its clock is the trainer's."""
        if request.mode == "ranking":
            self.vectors = Vectors(request.out, self.trainer.epoch_samples, self.job.epochs)
            self.trainer.run()
            return Fitted(self.vectors.points, share_of_inputs=self._share())
        if request.mode == "prequential":
            return self._prequential(request)
        points: list[Point] = []
        marks = [mark for mark in request.marks if mark < self.trainer.epoch_samples]

        def at_boundary() -> None:
            if marks and self.trainer.samples >= marks[0]:
                marks.pop(0)
                self.trainer.training.stop()
                keep()
                self.trainer.training.start()

        def keep(scores: Any = None) -> None:
            file = Path(request.out) / f"scores-{len(points)}.npy"
            if scores is None:
                start, stop = self.trainer.score_range
                scores = predict_range(self.trainer.model, self.store, start, stop, bf16=self.config.bf16)
            np.save(file, scores)
            points.append(Point(self.trainer.samples, self.trainer.training.seconds, [str(file)]))

        _, logits = self.trainer.run(at_boundary)
        keep(logits)
        return Fitted(points, share_of_inputs=self._share())

    def _prequential(self, request: Fit) -> Fitted:
        start, stop = self.trainer.score_range
        _, logits = self.trainer.run()
        scores = np.full(self.job.train[1], np.nan, dtype=np.float32)
        scores[start:stop] = logits
        file = Path(request.out) / "scores.npy"
        np.save(file, scores)
        chunks = [event for event in self.events if isinstance(event, ChunkScored)]
        points = [Point(event.samples, event.seconds) for event in chunks if event.samples]
        return Fitted([*points, Point(self.trainer.samples, self.trainer.training.seconds)], str(file), self._share())

    def _listen(self, event: Event) -> None:
        if isinstance(event, ChunkScored):
            self.events.append(event)
        elif isinstance(event, EpochDone) and self.vectors is not None:
            with torch.no_grad():
                found = self.trainer.model.vectors()
            assert found is not None
            # Row 0 stands for whatever is unknown: nobody's, and in no list.
            users = torch.cat([found.users, torch.ones(len(found.users), 1)], dim=1)
            items = torch.cat([found.items, found.item_bias.unsqueeze(1)], dim=1)
            seconds = event.seconds - self.before
            self.before = event.seconds
            self.vectors.keep(seconds, users.numpy(), items.numpy())

    def _share(self) -> float:
        return self.trainer.skipper.report().share_of_inputs_trained

    def rewind(self) -> None:
        """Begins anew."""
        start, stop = self.trainer.train_range
        self.batches = iter(self.store.batches(self.batch_size, start=start, stop=stop))

    def next(self) -> tuple[Batch | None, int]:
        """The next batch of the store."""
        batch = next(self.batches, None)
        return (None, 0) if batch is None else (self.trainer.sender.send(batch), len(batch))

    def forward(self, batch: Batch) -> Any:
        """The loss."""
        with autocast(self.config.bf16):
            return self.trainer.model.loss(batch)

    def update(self) -> None:
        """The optimizers' steps."""
        for optimizer in self.trainer.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def scores(self, start: int, stop: int) -> Any:
        """Logits."""
        return predict_range(self.trainer.model, self.store, start, stop, bf16=self.config.bf16)
