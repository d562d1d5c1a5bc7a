"""The data sets of ``slipstream bench frontier``, each with the training that suits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slipstream.bench.frontier_options import FrontierOptions
from slipstream.bench.globo import SETTINGS as GLOBO
from slipstream.bench.globo import first_clicks
from slipstream.cli.settings import validate
from slipstream.data.synthetic import Preset, SyntheticConfig, generate
from slipstream.documents import read_settings
from slipstream.errors import ConfigError, DataError
from slipstream.training import TrainConfig

_EXAMPLE = Path("examples/movietweetings")
_REMEDY = "name the folder it lies in with --folder (bench row-share and bench gpu: --data)"
GLOBO_SAMPLES = 1_200_000
"""Samples of Globo unless ``samples`` says otherwise."""
SYNTHETIC_SAMPLES: dict[Preset, int] = {"default": 2_000_000, "starved": 1_000_000}
"""Samples of each preset unless ``samples`` says otherwise."""

MODELS: Mapping[str, dict[str, Any]] = {
    "dlrm-small": {"name": "dlrm", "bottom": [64], "top": [128, 64]},
    "dlrm-kaggle": {"name": "dlrm"},
    "dcnv2": {"name": "dcnv2"},
    "deepfm": {"name": "deepfm"},
}
"""Models that take the place of a data set's own, by name; ``dlrm-kaggle``, ``dcnv2`` and ``deepfm`` are those of the
library's defaults."""

Settings = dict[str, Any]
Maker = Callable[[FrontierOptions, Path], Settings]
"""From the options and a folder for large files to the settings of a :class:`TrainConfig`."""


def _movietweetings(options: FrontierOptions, folder: Path) -> Settings:
    if not _EXAMPLE.is_dir():
        raise DataError("no such data", file=_EXAMPLE, remedy="run the benchmark in the root of the source tree")
    return {**read_settings(_EXAMPLE / "train.yaml"), "data": _EXAMPLE, "cache": folder}


def _globo(options: FrontierOptions, folder: Path) -> Settings:
    source = options.folder / "globo_clicks.parquet"
    if not source.exists():
        raise DataError("no such data", file=source, remedy=_REMEDY)
    samples = options.samples or GLOBO_SAMPLES
    # Nearly every click makes 3 samples: half as many clicks as samples are enough, and all take long to prepare.
    cut = folder / f"globo-{samples}"
    cut.mkdir(parents=True, exist_ok=True)
    data = cut / source.name
    if not data.exists():
        first_clicks(source, cut, samples // 2)
    return {**GLOBO, "data": data, "cache": folder, "max_samples": samples, "score_from": samples // 3}


def _wide(make: Maker, lr: float, embedding_lr: float) -> Maker:
    """The same training with rows of 64 numbers and Adam, where row updates weigh most."""

    def wider(options: FrontierOptions, folder: Path) -> Settings:
        made = make(options, folder)
        made["model"] = {**made["model"], "embedding_dim": 64}
        made["optimizer"] = {"name": "adam", "lr": lr, "embedding_lr": embedding_lr}
        return made

    return wider


def _pairs(name: str) -> Maker:
    """Pairs in random order, trained on as positives by BPR, and ranked among the full catalogue.

    Not shuffled anew in each epoch, so that policies may plan an order; the items drawn against them differ each time.
    """

    def make(options: FrontierOptions, folder: Path) -> Settings:
        source = options.folder / f"{name}.parquet"
        if not source.exists():
            raise DataError("no such data", file=source, remedy=_REMEDY)
        return {
            "data": source,
            "cache": folder,
            "prepare": {"negatives": 0},
            "model": {"name": "mf", "embedding_dim": 64, "objective": "bpr"},
            "optimizer": {"name": "adam", "lr": 0.003, "weight_decay": 1e-5},
            "batch_size": 2048,
            "epochs": 10,
        }

    return make


def _two_towers(make: Maker) -> Maker:
    """The same pairs, by two towers: each positive's item told from the other items of the batch.

    In smaller batches and fewer epochs: time grows with the square of the batch.
    """

    def towers(options: FrontierOptions, folder: Path) -> Settings:
        made = make(options, folder)
        model = {"name": "two_tower", "embedding_dim": 64, "layers": [64], "objective": "softmax"}
        rates = {"name": "adam", "lr": 0.001, "embedding_lr": 0.003}
        return {**made, "model": model, "optimizer": rates, "batch_size": 512, "epochs": 4}

    return towers


def _synthetic(preset: Preset, base_rate: float) -> Maker:
    """The preset, the teacher's intercept set for ``base_rate``: the same rows and effects at every rate."""

    def make(options: FrontierOptions, folder: Path) -> Settings:
        samples = options.samples or SYNTHETIC_SAMPLES[preset]
        data = folder / f"synthetic-{preset}-{base_rate:g}-{samples}"
        if not (data / "store.json").exists():
            generate(data, SyntheticConfig.preset(preset, base_rate=base_rate, num_samples=samples))
        return {
            "data": data,
            "model": {**MODELS["dlrm-small"], "embedding_dim": 16},
            "optimizer": {"name": "rowwise_adagrad", "dense_name": "adam", "lr": 0.002, "embedding_lr": 0.08},
            "batch_size": 1024,
        }

    return make


SETS: Mapping[str, Maker] = {
    "movietweetings": _movietweetings,
    "globo": _globo,
    "movietweetings-wide": _wide(_movietweetings, 0.003, 0.008),
    "globo-wide": _wide(_globo, 0.002, 0.008),
    "ml1m": _pairs("ml1m_pairs"),
    "gowalla": _pairs("gowalla"),
    "gowalla-two-tower": _two_towers(_pairs("gowalla")),
    "synthetic": _synthetic("default", 0.25),
    "synthetic-wide": _wide(_synthetic("default", 0.25), 0.002, 0.002),
    "synthetic-8": _synthetic("default", 0.08),
    "synthetic-8-wide": _wide(_synthetic("default", 0.08), 0.002, 0.002),
    "synthetic-2": _synthetic("default", 0.02),
    "starved": _synthetic("starved", 0.25),
    "starved-8": _synthetic("starved", 0.08),
    "starved-2": _synthetic("starved", 0.02),
}
"""Data sets by name; a number at the end is the percentage of positives (without one: 25); ``wide``: rows
of 64 numbers and Adam."""


def training_of(options: FrontierOptions, folder: Path, **settings: Any) -> TrainConfig:
    """The training whose skipping is measured.

    Args:
        options: ``data``, ``config``, ``folder``, ``samples``, ``mode`` and ``model`` are read.
        folder: Where prepared and generated data goes.
        **settings: Settings that replace the data set's own.

    Raises:
        DataError: There is no such data.
        ConfigError: The settings do not fit together.
    """
    made: Settings = {}
    if options.data in SETS:
        if options.config is not None:
            raise ConfigError(f"{options.data} has settings of its own", remedy="name the data by its path for yours")
        made = SETS[options.data](options, folder)
    elif Path(options.data).exists():
        made = {} if options.config is None else read_settings(options.config)
        made |= {"data": options.data, "cache": folder}
    else:
        names = ", ".join(SETS)
        raise DataError("no such data", file=options.data, remedy=f"name a data set ({names}) or a path")
    if options.samples is not None:
        made["max_samples"] = options.samples
    if options.model is not None:
        made["model"] = _model(options.model, options.data, made)
    if options.mode is not None:
        made["mode"] = options.mode
    if made.get("mode") != "prequential":
        for name in ("score_from", "score_to"):
            made.pop(name, None)
    return validate(TrainConfig, {**made, **settings})


def _model(name: str, data: str, made: Settings) -> Settings:
    """The model named, with rows as wide as those of the data set's own.

    Raises:
        ConfigError: There is no such model, or the data's samples are pairs.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}", remedy=f"choose among {', '.join(MODELS)}")
    own = made.get("model")
    own = own if isinstance(own, dict) else {"name": own}
    if own.get("objective") in ("bpr", "softmax"):
        raise ConfigError(f"{data} is pairs, for which {name} is no model", remedy="leave out --model")
    return {**MODELS[name], **{key: own[key] for key in ("embedding_dim", "init", "init_std") if key in own}}
