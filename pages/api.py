"""The API reference: a page for each room of the package, which mkdocstrings fills from docstrings without imports."""

from __future__ import annotations

from collections.abc import Callable

ROOMS = {
    "slipstream": ["slipstream.embedding.convert", "slipstream.policies.skipper", "slipstream.policies.report"],
    "embedding": ["slipstream.embedding.modules", "slipstream.embedding.collection", "slipstream.embedding.cached"],
    "optim": ["slipstream.optim.optimizers", "slipstream.optim.groups", "slipstream.optim.clip"],
    "policies": [
        "slipstream.policies.base",
        "slipstream.policies.random",
        "slipstream.policies.psse",
        "slipstream.policies.importance",
        "slipstream.policies.saturation",
        "slipstream.policies.subsampling",
        "slipstream.policies.row_importance",
        "slipstream.policies.slipstream",
        "slipstream.policies.guard",
        "slipstream.policies.combine",
    ],
    "data": [
        "slipstream.data.schema",
        "slipstream.data.prepare",
        "slipstream.data.store",
        "slipstream.data.batch",
        "slipstream.data.batches",
        "slipstream.data.columns",
    ],
    "training": ["slipstream.training.run", "slipstream.training.events", "slipstream.training.result"],
    "evaluation": [
        "slipstream.evaluation.metrics",
        "slipstream.evaluation.reliability",
        "slipstream.evaluation.popularity",
        "slipstream.evaluation.ranking",
    ],
    "interop": [
        "slipstream.interop.lightning",
        "slipstream.interop.weighted",
        "slipstream.interop.torchrec",
        "slipstream.interop.torchrec_gates",
        "slipstream.export",
    ],
    "distributed": [
        "slipstream.distributed.exchange",
        "slipstream.distributed.hearing",
        "slipstream.distributed.parts",
        "slipstream.distributed.watch",
    ],
    "estimator": ["slipstream.estimator"],
    "testing": ["slipstream.testing.check"],
    "errors": ["slipstream.errors"],
}
"""Modules by page."""


def pages() -> dict[str, Callable[[], str]]:
    """Each page's text by its name."""

    def make(name: str, modules: list[str]) -> Callable[[], str]:
        title = name if name == "slipstream" else f"slipstream.{name}"
        return lambda: f"# {title}\n\n" + "\n".join(f"::: {module}\n" for module in modules)

    return {name: make(name, modules) for name, modules in ROOMS.items()}
