"""Who takes part: each system with its environment, its module, and the settings that its documentation recommends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.datasets import Dataset

from slipstream.errors import ConfigError

Settings = dict[str, Any]
FACTORS = (1 / 3, 1.0, 3.0)
"""On a system's learning rates: the grid that all begin with."""
ENGINE, REFERENCE = "benchmarks.peers.engine", "benchmarks.peers.dlrm_reference"


@dataclass(frozen=True)
class System:
    """A system.

    Attributes:
        peer: Name of its environment; None: ours.
        module: What its process makes it with.
        settings: Its settings for a data set.
        rates: Names of the settings that the grid multiplies, joined by dots where they are nested.
        rates_of: Instead of a grid of its own: the system whose choice it takes, since both do the same arithmetic or
            differ in what is skipped alone.
        epochs: Over pairs, where a system's documentation has its own number; None: as many as all.
        share: ``engine``, ``skipping``, ``bf16`` or ``sampler``: what of ours it shows; empty for peers and published
            systems.
        draws: Over pairs: the negatives that it trains a positive against.
    """

    peer: str | None
    module: str
    settings: Callable[[Dataset], Settings]
    rates: tuple[str, ...] = ("lr",)
    rates_of: str | None = None
    share: str = ""
    draws: str = ""
    epochs: int | None = None


def with_rate(system: System, settings: Settings, factor: float) -> Settings:
    """The settings with the rates multiplied."""
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}
    for name in system.rates:
        tree: Any = changed
        *parents, last = name.split(".")
        for parent in parents:
            tree = tree[parent]
        tree[last] *= factor
    return changed


def _reference(optimizer: str, lr: float, **more: Any) -> Callable[[Dataset], Settings]:
    return lambda data: {**data.model, "batch_size": data.batch_size, "optimizer": optimizer, "lr": lr, **more}


def _torchrec(**more: Any) -> Callable[[Dataset], Settings]:
    def settings(data: Dataset) -> Settings:
        # Adam beside row-wise Adagrad, at the rates that ours begins with.
        return {**data.model, "batch_size": data.batch_size, "lr": 0.002, "embedding_lr": 0.08, **more}

    return settings


def _fuxictr(model: str) -> Callable[[Dataset], Settings]:
    def settings(data: Dataset) -> Settings:
        # Its documentation trains Criteo at lr 1e-3 in batches of 10,000; dense Adam passes over the tables each step.
        rows = {"hidden": data.model["top"], "dim": data.model["dim"]}
        chosen = "deepfm" if model == "dlrm" and not data.model["bottom"] else model  # its DLRM needs dense columns
        size = data.batch_size if data.mode == "prequential" else 4096
        return {"model": chosen, "batch_size": size, "lr": 1e-3, **rows}

    return settings


def _ours(optimizer: Settings | None = None, **more: Any) -> Callable[[Dataset], Settings]:
    def settings(data: Dataset) -> Settings:
        model = {"name": "dlrm", "embedding_dim": data.model["dim"], "top": data.model["top"]}
        if data.model["bottom"]:
            model["bottom"] = data.model["bottom"]
        tree: Settings = {"model": model, "batch_size": data.batch_size, "schedule": {"dense": "constant"}}
        tree["optimizer"] = optimizer or {
            "name": "rowwise_adagrad",
            "dense_name": "adam",
            "lr": 0.002,
            "embedding_lr": 0.08,
        }
        if data.mode == "prequential":
            tree |= {"mode": "prequential", "chunk_size": data.chunk}
        return tree | {key: value(data) if callable(value) else value for key, value in more.items()}

    return settings


def _paper(data: Dataset) -> Settings:
    steps = (data.train[1] - data.train[0]) // data.batch_size
    return {"name": "slipstream", "mode": "once", "snapshot_start": max(1, min(1000, steps // 10))}


# facebookresearch/dlrm trains Criteo Kaggle at 0.1 in batches of 128 (0.8 in 1,024), Adagrad lower; on shorter data the
# best rates lie higher, and the middle of the grid with them.
_SGD: Settings = {"name": "sgd", "lr": 2.4}
_ADAGRAD: Settings = {"name": "adagrad", "lr": 0.09}
_BOTH = ("optimizer.lr", "optimizer.embedding_lr")
_FAST: Settings = {"bf16": True, "compile": True}


def _skipping(policy: str, budget: float, *, adagrad: bool = False, **more: Any) -> System:
    optimizer, rates, rates_of = (
        (_ADAGRAD, ("optimizer.lr",), "dlrm_reference_adagrad") if adagrad else (None, _BOTH, "slipstream")
    )
    skipping = {"name": policy, "budget": budget, **more}
    return System(None, ENGINE, _ours(optimizer, policy=skipping), rates, rates_of=rates_of, share="skipping")


def _published(name: str, **more: Any) -> System:
    return System(None, ENGINE, _ours(_SGD, system=name, **more), ("optimizer.lr",), rates_of="dlrm_reference")


CLICKS: Mapping[str, System] = {
    "slipstream": System(None, ENGINE, _ours(), _BOTH, share="engine"),
    "slipstream_bf16": System(None, ENGINE, _ours(**_FAST), _BOTH, rates_of="slipstream", share="bf16"),
    "slipstream_sgd": System(
        None, ENGINE, _ours(_SGD), ("optimizer.lr",), rates_of="dlrm_reference", share="like for like"
    ),
    "slipstream_adagrad": System(
        None, ENGINE, _ours(_ADAGRAD), ("optimizer.lr",), rates_of="dlrm_reference_adagrad", share="like for like"
    ),
    "importance_0.7": _skipping("importance", 0.7),
    "importance_0.5": _skipping("importance", 0.5),
    "label_alone_0.5": _skipping("importance", 0.5, score="label"),
    "random_0.5": _skipping("random", 0.5),
    "importance_0.7_adagrad": _skipping("importance", 0.7, adagrad=True),
    "importance_0.5_adagrad": _skipping("importance", 0.5, adagrad=True),
    "label_alone_0.5_adagrad": _skipping("importance", 0.5, score="label", adagrad=True),
    "random_0.5_adagrad": _skipping("random", 0.5, adagrad=True),
    "dlrm_reference": System(None, REFERENCE, _reference("sgd", _SGD["lr"])),
    "dlrm_reference_adagrad": System(None, REFERENCE, _reference("adagrad", _ADAGRAD["lr"])),
    "dlrm_reference_bf16": System(None, REFERENCE, _reference("sgd", _SGD["lr"], **_FAST), rates_of="dlrm_reference"),
    "torchrec": System("torchrec", "benchmarks.peers.torchrec.peer", _torchrec(), ("lr", "embedding_lr")),
    "torchrec_bf16": System(
        "torchrec", "benchmarks.peers.torchrec.peer", _torchrec(**_FAST), ("lr", "embedding_lr"), rates_of="torchrec"
    ),
    "fuxictr": System("fuxictr", "benchmarks.peers.fuxictr.peer", _fuxictr("dlrm")),
    "fuxictr_dcnv2": System("fuxictr", "benchmarks.peers.fuxictr.peer", _fuxictr("dcnv2")),
    "fuxictr_deepfm": System("fuxictr", "benchmarks.peers.fuxictr.peer", _fuxictr("deepfm")),
    "fae": _published("fae"),
    "xdl": _published("xdl"),
    "slipstream_paper": _published("slipstream_paper", policy=_paper),
}
"""Systems that train on clicks."""


def _bpr(optimizer: Settings, **more: Any) -> Callable[[Dataset], Settings]:
    return lambda data: {
        "model": {"name": "mf", "embedding_dim": 64, "objective": "bpr", "init_std": 0.01, **more},
        "optimizer": optimizer,
        "schedule": {"dense": "constant"},
        "batch_size": 2048,
        "ranking": {"k": 20},
    }


def _recbole(model: str, **more: Any) -> Callable[[Dataset], Settings]:
    # Learning rate and batch size of its documentation.
    return lambda data: {"model": model, "learning_rate": 1e-3, "train_batch_size": 2048, **more}


_RECBOLE_DRAWS = "1 item, uniformly of those that are not the user's own"

PAIRS: Mapping[str, System] = {
    "slipstream": System(
        None,
        ENGINE,
        _bpr({"name": "adam", "lr": 0.003}),
        ("optimizer.lr",),
        share="engine",
        draws="1 item, uniformly of all",
    ),
    "slipstream_hardest_of_8": System(
        None,
        ENGINE,
        _bpr({"name": "adagrad", "lr": 0.1}, candidates=8),
        ("optimizer.lr",),
        share="sampler",
        draws="8 items, uniformly of all; trained against the one with the highest score (dynamic negative sampling)",
    ),
    "recbole_bpr": System(
        "recbole",
        "benchmarks.peers.recbole.peer",
        _recbole("BPR", embedding_size=64),
        ("learning_rate",),
        draws=_RECBOLE_DRAWS,
    ),
    "recbole_neumf": System(
        "recbole",
        "benchmarks.peers.recbole.peer",
        _recbole("NeuMF"),
        ("learning_rate",),
        rates_of="recbole_bpr",
        draws=_RECBOLE_DRAWS,
    ),
    "implicit_bpr": System(
        "implicit",
        "benchmarks.peers.implicit.peer",
        lambda data: {"model": "bpr", "factors": 63, "learning_rate": 0.01, "regularization": 0.01},
        ("learning_rate",),
        draws="1 item, that of a pair drawn uniformly: by popularity; left out where it is the user's own",
        epochs=100,
    ),
    "implicit_als": System(
        "implicit",
        "benchmarks.peers.implicit.peer",
        # It has no rate: the grid is over the weight of a pair.
        lambda data: {"model": "als", "factors": 64, "regularization": 0.01, "alpha": 3.0},
        ("alpha",),
        draws="none: every pair of a user and an item counts",
        epochs=15,
    ),
}
"""Systems that rank."""


def chosen(
    systems: Mapping[str, System], peers: tuple[str, ...] | None, wanted: tuple[str, ...] | None = None
) -> dict[str, System]:
    """The systems of our own environment, and those of the peers named; all peers if None are.

    Args:
        systems: All there are.
        peers: Names of peers' environments.
        wanted: Names of the only systems to take.

    Raises:
        ConfigError: There is no such peer.
    """
    known = {system.peer for group in (CLICKS, PAIRS) for system in group.values() if system.peer}
    for peer in peers or ():
        if peer not in known:
            raise ConfigError(f"there is no peer {peer!r}", remedy=f"choose among {', '.join(sorted(known))}")
    return {
        name: system
        for name, system in systems.items()
        if (peers is None or system.peer is None or system.peer in peers) and (wanted is None or name in wanted)
    }
