"""FuxiCTR's own training step on converted tables, with a policy in front of it."""

from typing import Any

import slipstream as sl
from slipstream.data import Columns
from slipstream.interop import weighted


def accelerate(model: Any, lr: float, untouched: Any = "lazy") -> None:
    """FuxiCTR's ``model.fit(...)`` then runs as before, faster."""
    sl.convert(model)  # after the constructor: it made and initialised everything
    model.optimizer = sl.optim.Adam(model.parameters(), lr=lr, untouched=untouched)


def train(model: Any, loader: Any, policy: Any, max_gradient_norm: float = 10.0) -> Any:
    """One epoch in which the policy may skip inputs."""
    ids = [name for name, field in model.feature_map.features.items() if field["type"] == "categorical"]
    columns = Columns(ids, model.feature_map.labels[0])
    skipper = sl.Skipper(model, policy, batch_size=loader.batch_size, to_batch=columns)
    model.loss_fn = weighted(model.loss_fn, skipper)
    model._max_gradient_norm = max_gradient_norm
    model.train()
    for batch in skipper(loader):
        model.train_step(batch.carried)
    return skipper.report()
