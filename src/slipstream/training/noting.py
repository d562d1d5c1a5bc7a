"""Figures for reports that are noted a few times over a training, outside its time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from slipstream.data.batch import Batch
from slipstream.evaluation import access_counts, score
from slipstream.evaluation.popularity import BUCKETS, bucket_feature, popularity_buckets
from slipstream.training.events import GatesNoted, HeldOutScored, tell
from slipstream.training.predicting import autocast

if TYPE_CHECKING:
    from slipstream.training.loop import Trainer

HELD_OUT = 8192
"""Samples held out that are scored at each point, at most."""


class Notes:
    """Scores some held-out samples and looks at the gates, ``report_points`` times evenly over the samples that pass.

    Nothing here changes what is computed, and nothing is noted where nobody listens. Held-out samples are scored in
    mode holdout, where the data has no ranked lists and the tables are in one memory; gates are looked at where the
    policy sets them.

    Args:
        trainer: The training.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._held_out: Batch | None = None
        self._buckets: torch.Tensor | None = None
        config = trainer.config
        self._points = config.report_points
        heard = bool(trainer.listeners) and trainer.cached is None
        self._scores = heard and config.mode == "holdout" and trainer.ranker is None
        self._feature = bucket_feature(trainer.store, config.popularity_feature)
        self._watches = heard and trainer.skipper.policy.skips_rows and self._feature is not None

    def take(self, before: int) -> None:
        """Notes the figures if the training has come past the next point.

        Args:
            before: Samples that had passed when this was last asked.
        """
        trainer = self._trainer
        now, total = trainer.samples, trainer.total_samples
        if before * self._points // total == now * self._points // total or not (self._scores or self._watches):
            return
        trainer.training.stop()
        trainer.predicting.start()
        if self._scores:
            self._score()
        if self._watches:
            self._look()
        trainer.predicting.stop()
        trainer.training.start()

    def _score(self) -> None:
        trainer = self._trainer
        if self._held_out is None:
            start, stop = trainer.score_range
            rows = np.linspace(start, stop - 1, min(stop - start, HELD_OUT), dtype=np.int64)
            self._held_out = trainer.store.take(rows)
        batch, model = self._held_out, trainer.model
        was_training = model.training
        model.eval()
        with torch.inference_mode(), autocast(trainer.config.bf16, trainer.config.device):
            # forward, not __call__: the compiled model is kept for the batch size it was compiled for.
            logits = model.forward(trainer.sender.send(batch).inputs).float().cpu().numpy()
        model.train(was_training)
        event = HeldOutScored(trainer.samples, score(batch.labels.numpy(), logits), trainer.training.seconds)
        tell(trainer.listeners, event)

    def _look(self) -> None:
        trainer, feature = self._trainer, self._feature
        assert feature is not None
        name = trainer.store.one_hot[feature].name
        tables = list(trainer.skipper.tables.values())
        if len(tables) != len(trainer.store.features):
            self._watches = False  # a model whose tables are not those of the features, one each, in their order
            return
        table = tables[[feature.name for feature in trainer.store.features].index(name)]
        if self._buckets is None:
            counts = access_counts(trainer.store, feature, *trainer.train_range)
            self._buckets = torch.from_numpy(popularity_buckets(counts))
        gate = None if table.gate is None else table.gate.cpu()
        chances: dict[str, float] = {}
        for number, bucket in enumerate(BUCKETS):
            rows = self._buckets == number
            if rows.any():
                chances[bucket] = 1.0 if gate is None else float(gate[rows].sum()) / (255 * int(rows.sum()))
        tell(trainer.listeners, GatesNoted(trainer.samples, name, chances, trainer.training.seconds))
