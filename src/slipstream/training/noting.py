"""Figures for reports that are noted a few times over a training, outside its time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from slipstream.data.batch import Batch
from slipstream.embedding import EmbeddingCollection
from slipstream.embedding.table import Table
from slipstream.evaluation import access_counts, score
from slipstream.evaluation.popularity import BUCKETS, bucket_feature, popularity_buckets
from slipstream.policies.base import Gated
from slipstream.training.events import GatesNoted, HeldOutScored, tell
from slipstream.training.predicting import autocast

if TYPE_CHECKING:
    from slipstream.training.loop import Trainer

_PIECE = 1 << 20
"""Rows whose gates are looked at at a time: tables can be large, and this needs no copy of them."""
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
        self._buckets: npt.NDArray[np.uint8] | None = None
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
        table = self._table(name)
        if table is None:
            self._watches = False
            return
        if isinstance(table, Table) and table.drawn_by() is not None:
            self._watches = False  # lookups are drawn: no gate says how often
            return
        if self._buckets is None:
            counts = access_counts(trainer.store, feature, *trainer.train_range)
            self._buckets = popularity_buckets(counts)
        chances = mean_chances(self._buckets, table.gate)
        tell(trainer.listeners, GatesNoted(trainer.samples, name, chances, trainer.training.seconds))

    def _table(self, name: str) -> Gated | None:
        """The table of a feature, if the model has one for it."""
        trainer = self._trainer
        if isinstance(trainer.model.embeddings, EmbeddingCollection):
            return trainer.model.embeddings.table_of.get(name)
        names = [feature.name for feature in trainer.store.features]
        tables = list(trainer.skipper.tables.values())
        return tables[names.index(name)] if len(tables) == len(names) else None


def mean_chances(buckets: npt.NDArray[np.uint8], gate: torch.Tensor | None) -> dict[str, float]:
    """Mean chance of a row's update, in [0, 1], by popularity: for the buckets that have rows.

    Args:
        buckets: Of each row, ``[R]``, positions in ``BUCKETS``.
        gate: uint8 ``[R]`` on any device, or None where every row is open.
    """
    rows, sums = np.zeros(len(BUCKETS), dtype=np.int64), np.zeros(len(BUCKETS))
    for start in range(0, len(buckets), _PIECE):
        piece = buckets[start : start + _PIECE]
        counts = np.bincount(piece, minlength=len(BUCKETS))
        rows += counts
        # Sums of whole numbers below 2^53 are exact.
        values = None if gate is None else gate[start : start + _PIECE].cpu().numpy()
        sums += 255 * counts if values is None else np.bincount(piece, values, minlength=len(BUCKETS))
    return {name: float(sums[i] / (255 * rows[i])) for i, name in enumerate(BUCKETS) if rows[i]}
