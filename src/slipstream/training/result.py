"""The outcome of a training, as written to ``result.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from slipstream.data.atomic import write_text
from slipstream.errors import ConfigError, DataError
from slipstream.evaluation import CurvePoint, Diversity, RankingScores, ReliabilityBin, Scores
from slipstream.report.machine import Machine


class Result(BaseModel):
    """The outcome of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: float | None
    """Area under the ROC curve of the scored samples; None where they are all positive (pairs without negatives)."""
    log_loss: float
    """Their mean cross-entropy, nats."""
    calibration: float
    """Mean of their predicted probabilities ÷ mean of their labels."""
    samples_scored: int
    """How many were scored."""
    seconds: float
    """Wall-clock time of the training with every overhead (data, policy, optimizer, listeners), without scoring."""
    samples_per_second: float
    """Samples of the data that passed ÷ ``seconds``; skipped ones count, since they had to be decided on."""
    prediction_seconds: float
    """Time spent on predicting the scored samples, not part of ``seconds``."""
    setup_seconds: float
    """Time before the first step: data opened (or prepared), model built, kernels loaded; not part of ``seconds``."""
    samples: int
    """Samples of the data that passed, all epochs together."""
    steps: int
    """Optimizer steps."""
    policy: str
    """Name of the policy."""
    policy_report: dict[str, Any]
    """The policy's own numbers."""
    share_of_inputs_trained: float
    """Inputs trained on ÷ inputs that passed."""
    share_of_row_updates_skipped: float
    """Row lookups of trained inputs whose update was skipped ÷ all of them."""
    by_popularity: dict[str, Scores]
    """Figures of the scored samples by the popularity of their row of one feature: head, torso, tail."""
    popularity_feature: str | None
    """That feature: the items, where the data says what they are."""
    new_items: dict[str, Scores]
    """Figures of the scored samples whose row of that feature is new: ``new``, in no sample before the first one
    scored; ``untrained``, in none that could be trained on when they were predicted."""
    diversity: Diversity | None
    """How widely recommendations spread over that feature's rows."""
    ranking: RankingScores | None
    """Figures of the ranked lists; None where the data is not of pairs or the model has no vectors."""
    learning_curve: tuple[CurvePoint, ...]
    """Figures along the training."""
    model: str
    """Name of the model."""
    mode: str
    """holdout or prequential."""
    engine: str
    """slipstream or torch."""
    seed: int
    """Seed of everything drawn."""
    dataset: str
    """Fingerprint of the data."""
    machine: Machine
    """Where it ran."""
    versions: dict[str, str]
    """Versions of Python and packages."""
    commit: str | None
    """Commit of the source tree it ran from."""
    reliability: tuple[ReliabilityBin, ...] = ()
    """Predicted probability against share of positives, of the scored samples in tenths by prediction."""
    phase_seconds: dict[str, float] = {}
    """``seconds`` by phase: input, policy, forward, backward, update; the rest is what lies between the steps. What a
    policy notes of lookups is part of forward. Empty on a GPU, where a phase ends when it is sent and not when done."""
    nonfinite_batches: int = 0
    """Batches left out because their loss or a gradient was not finite."""
    ranks: int = 1
    """Processes that shared the training."""
    bytes_exchanged: int = 0
    """Bytes that the first of them handed to the collectives of its steps, since it was started."""

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Reads a result.

        Raises:
            DataError: The file cannot be read or holds something else.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise DataError(f"is no result ({str(error).splitlines()[0]})", file=path) from error

    @property
    def quality(self) -> float:
        """What runs on this data are compared by: NDCG where there are ranked lists, else AUC.

        Raises:
            ConfigError: There is neither, so not even the classes of the labels could be told apart.
        """
        value = self.auc if self.ranking is None else self.ranking.ndcg
        if value is None:
            raise ConfigError("the run has neither ranked lists nor an AUC")
        return value

    def save(self, path: str | Path) -> None:
        """Writes the result as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=2) + "\n")
