"""Training listeners for TensorBoard, MLflow and Weights & Biases; each needs its package.

The x axis is the number of samples that have passed, skipped ones included, so that runs with and without skipping
line up.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from slipstream.errors import ConfigError, NotInstalled
from slipstream.evaluation import Scores
from slipstream.training.config import TrainConfig
from slipstream.training.events import ChunkScored, EpochDone, Event, RunDone, RunStarted, StepDone
from slipstream.training.result import Result


class _Logger(ABC):
    """Turns events into named figures; subclasses send them somewhere."""

    def __init__(self) -> None:
        self._samples = 0

    def __call__(self, event: Event) -> None:
        """Takes an event."""
        match event:
            case RunStarted():
                self._start(event.config)
            case StepDone():
                self._samples = event.samples
                figures = {"loss": event.loss, "dense_lr": event.dense_lr, "embedding_lr": event.embedding_lr}
                self._log({f"train/{name}": value for name, value in figures.items()} | _rate(event), event.samples)
            case ChunkScored():
                self._log(_figures("chunk", event.scores), event.samples)
            case EpochDone():
                self._log(_figures("holdout", event.scores), event.samples)
            case RunDone():
                self._samples = event.result.samples
                self._log(_outcome(event.result), event.result.samples)
                self.close()

    @abstractmethod
    def _start(self, config: TrainConfig) -> None:
        """Opens a run."""

    @abstractmethod
    def _log(self, figures: dict[str, float], samples: int) -> None:
        """Sends figures, ``samples`` on the x axis."""

    @abstractmethod
    def close(self) -> None:
        """Ends the run in the logger; also for a training that failed."""


class TensorBoard(_Logger):
    """Scalars for ``tensorboard --logdir FOLDER``.

    Args:
        folder: Where the event files go.

    Raises:
        NotInstalled: tensorboard is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        _package("tensorboard", "tensorboard")
        self.folder = Path(folder)
        self._writer: Any = None

    def _start(self, config: TrainConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder))
        self._writer.add_text("config", f"```\n{config.model_dump_json(indent=2)}\n```")

    def _log(self, figures: dict[str, float], samples: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, samples)

    def close(self) -> None:
        """Writes what is buffered."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflow(_Logger):
    """A run in MLflow, in a database of its own (SQLite) unless ``MLFLOW_TRACKING_URI`` says otherwise.

    Args:
        folder: Where ``mlflow.db`` goes.
        experiment: Name of the experiment.

    Raises:
        NotInstalled: mlflow is missing.
    """

    def __init__(self, folder: str | Path, experiment: str = "slipstream") -> None:
        super().__init__()
        self._mlflow: Any = _package("mlflow", "mlflow")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            _package("sqlalchemy", "mlflow")
        self.folder, self.experiment = Path(folder), experiment
        self._client: Any = None
        self._run = ""

    def _start(self, config: TrainConfig) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(self.folder / 'mlflow.db').resolve()}"
        # The client, not mlflow.start_run: a run of the caller's own stays as it is.
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(self.experiment)
        number = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
        name = None if config.out is None else config.out.name
        self._run = self._client.create_run(number, run_name=name).info.run_id
        for key, value in _flat(config.model_dump(mode="json")).items():
            self._client.log_param(self._run, key, value)

    def _log(self, figures: dict[str, float], samples: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run, name, value, step=samples)

    def close(self, status: str = "FAILED") -> None:
        """Ends the run; failed, unless it was done."""
        if self._client is not None:
            self._client.set_terminated(self._run, status=status)
            self._client = None

    def __call__(self, event: Event) -> None:
        """Takes an event."""
        if isinstance(event, RunDone):
            self._log(_outcome(event.result), event.result.samples)
            self.close("FINISHED")
        else:
            super().__call__(event)


class WandB(_Logger):
    """A run of Weights & Biases, offline unless ``WANDB_MODE`` says otherwise; ``wandb sync`` uploads it.

    Args:
        folder: Where its ``wandb`` folder goes.
        project: Name of the project.

    Raises:
        NotInstalled: wandb is missing.
    """

    def __init__(self, folder: str | Path, project: str = "slipstream") -> None:
        super().__init__()
        self._wandb: Any = _package("wandb", "wandb")
        self.folder, self.project = Path(folder), project
        self._run: Any = None

    def _start(self, config: TrainConfig) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=self.project,
            dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=config.model_dump(mode="json"),
            reinit="create_new",
        )

    def _log(self, figures: dict[str, float], samples: int) -> None:
        self._run.log(figures | {"samples": samples}, step=samples)

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


LOGGERS: dict[str, Callable[[Path], _Logger]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def make_logger(name: str, folder: Path) -> _Logger:
    """A logger by name, whose files go to ``folder``.

    Raises:
        ConfigError: There is no such logger.
        NotInstalled: Its package is missing.
    """
    if name not in LOGGERS:
        raise ConfigError(f"no logger {name!r}", remedy=f"choose of {', '.join(LOGGERS)}")
    return LOGGERS[name](folder)


def _package(name: str, extra: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise NotInstalled(f"the logger {extra}", f"slipstream-rec[{extra}]") from error


def _rate(event: StepDone) -> dict[str, float]:
    return {"train/samples_per_second": event.samples / event.seconds} if event.seconds else {}


def _figures(kind: str, scores: Scores) -> dict[str, float]:
    figures = scores.model_dump(exclude={"samples"})
    return {f"{kind}/{name}": float(value) for name, value in figures.items() if value is not None}


def _outcome(result: Result) -> dict[str, float]:
    names = ("auc", "log_loss", "calibration", "seconds", "share_of_inputs_trained", "share_of_row_updates_skipped")
    found = {name: getattr(result, name) for name in names} | {
        f"ranking/{name}": value for name, value in (result.ranking.model_dump() if result.ranking else {}).items()
    }
    return {f"result/{name}": float(value) for name, value in found.items() if isinstance(value, int | float)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
