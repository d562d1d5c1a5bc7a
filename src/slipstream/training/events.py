"""What happens during a training, as plain records that listeners receive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipstream.evaluation import RankingScores, Scores

if TYPE_CHECKING:
    from slipstream.training.config import TrainConfig
    from slipstream.training.result import Result


@dataclass(frozen=True, slots=True)
class CompilingKernels:
    """Before :class:`RunStarted`: kernels are compiled, as Numba's cache lacks some; it takes up to a minute."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Data is open, the model is built, the first batch comes next."""

    config: TrainConfig
    """The resolved configuration."""
    total_samples: int
    """Samples of the data that will pass, all epochs together."""
    parameters: int
    """Elements of all parameters, tables included."""
    memory: int = 0
    """Bytes that model, optimizer and policy are estimated to take."""
    resumed_at: int | None = None
    """Samples that had passed before, when a training goes on from a checkpoint; None: it begins."""
    replaced: Path | None = None
    """Where the finished run lies, until this one is complete, that was in its run folder before it, or before an
    attempt at it that died; None: there was none."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """Every ``log_every`` steps, and after the last."""

    step: int
    """Optimizer steps so far."""
    samples: int
    """Samples of the data that have passed, skipped ones included."""
    loss: float
    """Mean loss of the steps since the last event."""
    dense_lr: float
    """Learning rate of the dense part in this step."""
    embedding_lr: float
    """Learning rate of the tables in this step."""
    seconds: float
    """Training time so far."""
    inputs_seen: int
    """Inputs decided on so far."""
    inputs_kept: int
    """Those of them that are trained on."""
    lookups: int
    """Row lookups of trained inputs so far; 0 where the tables are not ours."""
    skipped: int
    """Those of them whose update a gate skipped."""
    phase_seconds: dict[str, float]
    """Training time so far by phase (input, policy, forward, backward, update); empty on a GPU, where nobody waits."""


@dataclass(frozen=True, slots=True)
class HeldOutScored:
    """Holdout: in mid-epoch, some of the samples held out were scored, always the same."""

    samples: int
    """Samples of the data that have passed."""
    scores: Scores
    """Their figures."""
    seconds: float
    """Training time so far; scoring is not part of it."""


@dataclass(frozen=True, slots=True)
class GatesNoted:
    """How open the gates of one feature's rows are."""

    samples: int
    """Samples of the data that have passed."""
    feature: str
    """The feature."""
    open: dict[str, float]
    """Mean chance of a row's update, in [0, 1], by popularity of the rows: head, torso, tail."""
    seconds: float
    """Training time so far."""


@dataclass(frozen=True, slots=True)
class PolicyMoved:
    """The policy changed what it skips by itself, or says why it does not."""

    policy: str
    """Its name."""
    move: dict[str, Any]
    """Its own numbers and reason."""
    seconds: float
    """Training time so far."""


@dataclass(frozen=True, slots=True)
class ChunkScored:
    """Prequential: a chunk was predicted, and is trained on next."""

    samples: int
    """Samples of the data that had passed before the chunk."""
    scores: Scores
    """Figures of the chunk."""
    seconds: float
    """Training time so far."""


@dataclass(frozen=True, slots=True)
class EpochDone:
    """Holdout: an epoch is over and the holdout samples were scored."""

    epoch: int
    """Epochs so far."""
    samples: int
    """Samples of the data that have passed."""
    scores: Scores
    """Figures of the holdout samples."""
    seconds: float
    """Training time so far."""
    ranking: RankingScores | None = None
    """Figures of the ranked lists, for data of pairs in the epochs that rank."""


@dataclass(frozen=True, slots=True)
class RunDone:
    """The training is over and the model saved."""

    result: Result
    """The outcome."""


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """The training was saved."""

    path: Path
    """The checkpoint's folder."""
    steps: int
    """Optimizer steps so far."""
    seconds: float
    """Time it took."""
    size: int
    """Bytes written."""


Event = (
    CompilingKernels
    | RunStarted
    | StepDone
    | HeldOutScored
    | GatesNoted
    | PolicyMoved
    | ChunkScored
    | EpochDone
    | CheckpointSaved
    | RunDone
)
Listener = Callable[[Event], None]
"""Called with every event, on the training's thread; the time it takes for a StepDone counts as training time."""


def tell(listeners: Iterable[Listener], event: Event) -> None:
    """Hands an event to all listeners, in order."""
    for listener in listeners:
        listener(event)
