"""Everything that decides a training, in one typed tree that goes to YAML and back."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from slipstream import documents
from slipstream.data.atomic import write_text
from slipstream.data.names import FormatName
from slipstream.data.options import PrepareOptions
from slipstream.errors import ConfigError, first_problem
from slipstream.models import DLRMConfig, ModelConfig
from slipstream.models.base import Engine
from slipstream.optim import OnSkip, Untouched
from slipstream.policies import NoneConfig, PolicyConfig, build_policy

OptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "adamw"]
Decay = Literal["constant", "linear", "cosine"]
Mode = Literal["holdout", "prequential"]
LARGEST_RATE = 1e9
"""Of learning rates and decay, whose product must be a float32, too."""
HOLDOUT = 0.1
"""Share of the samples that is scored unless the settings or the data say otherwise."""


def _by_name(value: Any) -> Any:
    """A section written as its name alone: ``policy: random``."""
    return {"name": value} if isinstance(value, str) else value


def _dlrm_unless_named(value: Any) -> Any:
    """Settings of a model without its name are those of the default."""
    return {"name": DLRMConfig().name, **value} if isinstance(value, dict) else _by_name(value)


def default_cache() -> Path:
    """Where prepared raw files are kept: ``slipstream`` in the user's cache folder.

    Raises:
        ConfigError: There is no such folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slipstream"
    except RuntimeError as error:
        raise ConfigError("this user has no home folder", remedy="set cache, or XDG_CACHE_HOME") from error


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OptimizerConfig(_Section):
    """How parameters are updated."""

    name: OptimizerName = "adagrad"
    """Optimizer of the tables, and of the dense part unless ``dense_name`` says otherwise."""
    dense_name: OptimizerName | None = None
    """Optimizer of the dense part; None: the same."""
    lr: float = Field(default=0.01, gt=0, le=LARGEST_RATE)
    """Learning rate of the dense part."""
    embedding_lr: float | None = Field(default=None, gt=0, le=LARGEST_RATE)
    """Learning rate of the tables; None: the same."""
    weight_decay: float = Field(default=0.0, ge=0, le=LARGEST_RATE)
    """L2 factor (adamw: decoupled decay) of all parameters."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of adam and adamw."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of sgd."""
    untouched: Untouched = "lazy"
    """What happens to table rows that a step does not touch."""
    on_skip: OnSkip = "freeze"
    """What happens to the moments of table rows that a gate skipped, and to their decoupled weight decay: catch_up
    decays at the rate of the step that catches up, which is exact for a constant rate."""
    clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Greatest norm of all gradients together; None: unbounded."""


class ScheduleConfig(_Section):
    """How learning rates change over the training.

    The decay follows the share of the data that has passed, skipped inputs included, so policies that skip differently
    see the same rate at the same place in the data.
    """

    dense: Decay | None = None
    """Of the dense part. None: linear for ``holdout``, constant for ``prequential`` (a stream has no end)."""
    embedding: Decay = "constant"
    """Of the tables. Decaying it starves rows that come late or seldom."""
    warmup_steps: int = Field(default=0, ge=0, lt=2**63)
    """Optimizer steps over which all rates rise linearly from 0."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Share of the rate that is left at the end of a decay."""


class RankingConfig(_Section):
    """Ranked lists of the full catalogue, for data of pairs and models with vectors (mf, two_tower)."""

    k: int = Field(default=20, ge=1)
    """Length of the lists; fewer if there are fewer items."""
    every: int = Field(default=0, ge=0)
    """Epochs from one ranking to the next; 0: after the last epoch alone."""


class CheckpointConfig(_Section):
    """When a training is saved to its run folder, so that ``--resume`` can go on; without one, nothing is."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between two checkpoints; None: not by steps."""
    minutes: float | None = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Minutes between two checkpoints; None: not by time."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept while the training runs; a full one that incremental ones begin from is kept beside them."""
    incremental: bool = True
    """Write only the rows touched since the last full checkpoint, where that is far less than all (large tables)."""
    final: bool = True
    """Keep one at the end, so that ``--continue`` can train on. It takes the place of the others."""


_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _bytes(value: Any) -> Any:
    """A size written with its unit: ``8GB``."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]*)\s*", value) if isinstance(value, str) else None
    if found is None:
        return value
    unit = found[2].lower() or "b"
    if unit not in _UNITS:
        raise ValueError(f"unknown unit {found[2]!r}; use one of {', '.join(_UNITS)}")
    return int(float(found[1]) * _UNITS[unit])


class TrainConfig(_Section):
    """One training."""

    data: Path
    """A prepared data set, or raw files, which are prepared once into ``cache``."""
    format: FormatName | None = None
    """Format of raw files; None: detected."""
    prepare: PrepareOptions = PrepareOptions()
    """How raw files are prepared."""
    columns: Path | None = None
    """YAML file that says what the columns of a raw CSV or Parquet file are; None: inferred."""
    cache: Path | None = None
    """Folder for what is prepared on the way; None: ``slipstream`` in the user's cache folder."""
    model: Annotated[ModelConfig, BeforeValidator(_dlrm_unless_named)] = DLRMConfig()
    """The model; without a name, DLRM."""
    policy: Annotated[PolicyConfig, BeforeValidator(_by_name)] = NoneConfig()
    """What to skip."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rates' course."""
    engine: Engine = "slipstream"
    """Whose tables and optimizers: ours; torch: nn.EmbeddingBag(sparse=True) with torch.optim, the reference; xdl: rows
    pulled once a batch, with torch.optim."""
    mode: Mode = "holdout"
    """holdout: train, then score the last samples. prequential: predict each chunk, then train on it."""
    batch_size: int = Field(default=1024, ge=1, lt=2**31)
    """Samples of a step."""
    epochs: int = Field(default=1, ge=1, le=1_000_000)
    """Passes over the training samples (holdout)."""
    shuffle: bool = False
    """Order of the training samples (holdout): drawn anew each epoch, or that of time."""
    holdout: float | None = Field(default=None, gt=0, lt=1)
    """Share of the samples, last in time, that is scored (holdout); None: the test samples where the data comes split,
    else a tenth."""
    chunk_size: int = Field(default=16_384, ge=1, lt=2**31)
    """Samples predicted at a time before they are trained on (prequential)."""
    max_samples: int | None = Field(default=None, ge=2, lt=2**63)
    """Use only the first so many samples."""
    score_from: int = Field(default=0, ge=0, lt=2**63)
    """First sample whose prediction counts (prequential)."""
    score_to: int | None = Field(default=None, ge=1, lt=2**63)
    """First sample whose prediction no longer counts (prequential); None: the end."""
    popularity_feature: str | None = None
    """One-hot feature by whose rows' accesses figures are split; None: the one with the most rows."""
    bf16: bool = False
    """Compute the dense part in bfloat16 (autocast)."""
    compile: bool = False
    """Compile the dense part with torch.compile."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model is trained; the data and the policy's decisions about inputs stay on the CPU."""
    row_cache_bytes: int | None = Field(default=None, ge=1, lt=2**63)
    """Keep the tables in host memory, and the rows in use, with all that is kept of each, in so many bytes of the
    device; None: tables on the device."""
    hotline: bool = False
    """With ``row_cache_bytes``: run the inputs whose rows are on the device first, and gather the others' meanwhile."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads to compute with; None: torch's default."""
    ranking: RankingConfig = RankingConfig()
    """Ranked lists."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of initial values, shuffling and the policy's draws."""
    log_every: int = Field(default=100, ge=1, lt=2**63)
    """Steps between two lines of metrics."""
    report_points: int = Field(default=10, ge=0, le=1000)
    """How often, evenly over the training, the report's figures are noted: the score of up to 8,192 of the samples
    held out (holdout; counted as prediction time), and how open the gates are by popularity."""
    out: Path | None = None
    """Run folder; None: nothing is written."""
    continue_from: Path | None = None
    """Run folder of a finished training whose model, optimizer and policy are trained on, on other data."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the training is saved."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do with a batch whose loss or a gradient is no finite number: stop and name its samples, or leave the
    batch out and count it."""
    max_memory: Annotated[int, Field(ge=1)] | None = None
    """Bytes, or a text with a unit such as 8GB: refuse to start a training whose estimate is above it."""

    @field_validator("out", "continue_from", mode="before")
    @classmethod
    def _path_of_something(cls, value: Any) -> Any:
        if value == "":  # an unset variable of a shell, say: it would be the current folder
            raise ValueError("is empty: write . for the current folder")
        return value

    @field_validator("max_memory", mode="before")
    @classmethod
    def _with_unit(cls, value: Any) -> Any:
        return _bytes(value)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.score_to is not None and self.score_to <= self.score_from:
            raise ValueError(f"score_to ({self.score_to}) must be above score_from ({self.score_from})")
        if self.mode == "prequential" and (self.epochs != 1 or self.shuffle):
            raise ValueError("prequential is one pass in time order: epochs must be 1 and shuffle false")
        if self.mode == "holdout" and (self.score_from or self.score_to is not None):
            raise ValueError("score_from and score_to belong to mode prequential")
        if self.engine != "slipstream" and self.optimizer.name in ("rowwise_adagrad", "adamw"):
            raise ValueError(f"engine {self.engine} has no {self.optimizer.name} for sparse gradients")
        if self.engine != "slipstream" and self.optimizer.clip is not None:
            raise ValueError(f"engine {self.engine} cannot clip sparse gradients")
        if self.engine != "slipstream" and self.optimizer.weight_decay:
            raise ValueError(f"engine {self.engine} has no weight_decay for sparse gradients")
        if self.engine != "slipstream" and self.optimizer.name == "sgd" and self.optimizer.momentum:
            raise ValueError(
                f"engine {self.engine} has no momentum for sparse gradients: torch's grows with every step"
            )
        if build_policy(self.policy).plans_order and (self.mode == "prequential" or self.shuffle):
            raise ValueError(f"policy {self.policy.name} orders the samples: use mode=holdout and shuffle=false")
        if self.optimizer.untouched == "dense" and build_policy(self.policy).skips_rows:
            raise ValueError(f"policy {self.policy.name} skips row updates, which needs untouched=lazy")
        if self.row_cache_bytes is not None:
            if self.engine != "slipstream" or self.compile or self.optimizer.untouched == "dense":
                raise ValueError("row_cache_bytes needs engine=slipstream, compile=false and untouched=lazy")
            if self.model.name == "mf":
                raise ValueError("row_cache_bytes is not for matrix factorization, which makes its own tables")
        if self.hotline and (self.row_cache_bytes is None or build_policy(self.policy).wants_losses):
            raise ValueError("hotline needs row_cache_bytes, and a policy that does not watch losses")
        if self.hotline and self.on_nonfinite == "skip":
            raise ValueError("hotline has taken its step before it knows the loss: on_nonfinite=skip is not for it")
        if self.model.name == "mf" and self.model.objective == "bpr" and self.compile:
            raise ValueError("compile is not for BPR, whose loss is kernels already: there is nothing to compile")
        if self.engine != "slipstream" and self.compile:
            raise ValueError(f"engine {self.engine} cannot compile sparse gradients")
        return self

    def resolved(self) -> TrainConfig:
        """The same with defaults that depend on other settings written out."""
        if self.schedule.dense is not None:
            return self
        dense: Decay = "linear" if self.mode == "holdout" else "constant"
        return self.model_copy(update={"schedule": self.schedule.model_copy(update={"dense": dense})})

    def to_yaml(self) -> str:
        """The tree as YAML; :func:`load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Writes a configuration as YAML, atomically."""
    write_text(path, config.to_yaml())


def load_config(path: str | Path) -> TrainConfig:
    """Reads a configuration.

    Raises:
        ConfigError: The file cannot be read or holds something else.
    """
    tree = documents.read_settings(path)
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}", remedy="correct the file") from error
