"""DeepCTR-Torch on converted tables, with a policy in front of it."""

from typing import Any

import numpy as np
import torch

import slipstream as sl
from slipstream.data import Columns
from slipstream.interop import weighted


def accelerate(model: Any, lr: float, untouched: Any = "lazy") -> None:
    """Its ``model.fit(...)`` then runs as before, faster."""
    sl.convert(model)
    model.compile(sl.optim.Adam(model.parameters(), lr=lr, untouched=untouched), "binary_crossentropy", ["auc"])


def train(model: Any, x: dict[str, Any], y: Any, ids: list[str], policy: Any, batch_size: int) -> Any:
    """One epoch in which the policy may skip inputs: ``fit`` makes its loader itself, so this is its loop."""
    inputs = torch.from_numpy(np.concatenate([x[name].reshape(len(y), -1) for name in model.feature_index], 1)).float()
    places = [place for name in ids for place in range(*model.feature_index[name])]
    parts = (columns.split(batch_size) for columns in (inputs, inputs[:, places], torch.from_numpy(y).float()))
    skipper = sl.Skipper(model, policy, batch_size=batch_size, to_batch=Columns(ids=["1"], label="2"))
    loss_of = weighted(model.loss_func, skipper)
    model.train()
    for batch in skipper(zip(*parts, strict=True)):
        loss = loss_of(model(batch.carried["0"]).squeeze(1), batch.labels, reduction="sum")
        model.optim.zero_grad()
        (loss + model.get_regularization_loss() + model.aux_loss).backward()
        model.optim.step()
    return skipper.report()
