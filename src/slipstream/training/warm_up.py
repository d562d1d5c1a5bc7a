"""Loading the compiled kernels before the clock starts."""

from __future__ import annotations

import torch

from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store
from slipstream.data.transfer import checked_device
from slipstream.models import build_model
from slipstream.policies import Skipper, build_policy
from slipstream.policies.packing import Packer
from slipstream.training.config import TrainConfig
from slipstream.training.optimizers import build_optimizers
from slipstream.training.predicting import autocast


def warm_up(config: TrainConfig, store: Store) -> None:
    """Trains a twin of the model with tables of two rows for one step, and throws it away.

    Compiling a kernel, or loading it from Numba's cache, takes as long as thousands of steps and happens once a
    process: it would make short trainings look slow. torch.compile is not warmed up, since what it makes belongs to
    the model itself.

    Args:
        config: The resolved configuration.
        store: The data, of which two samples are shaped like.

    Raises:
        ConfigError: The device is not there.
    """
    features = [FeatureInfo(name=feature.name, num_rows=2, multi_hot=feature.multi_hot) for feature in store.features]
    model = build_model(config.model, features, store.num_dense, engine=config.engine).to(checked_device(config.device))
    bags = tuple(
        Bag(torch.ones(2, dtype=torch.int32), torch.tensor([0, 1, 2])) for feature in features if feature.multi_hot
    )
    ids = torch.ones(2, len(store.one_hot), dtype=torch.int32)
    inputs = Inputs(torch.zeros(2, store.num_dense), ids, bags)
    batch = Batch(inputs, torch.tensor([0.0, 1.0]), torch.arange(2), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    optimizers = build_optimizers(model, config.optimizer, config.engine)
    skipper = Skipper(model, build_policy(config.policy), batch_size=2, seed=config.seed, total_samples=2)
    decided = () if skipper.policy.plans_order else skipper.push(batch)  # of two samples nothing can be planned
    for kept in [*decided, batch]:
        with autocast(config.bf16, config.device):
            loss = model.loss(kept.to(config.device))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    Packer().add(batch, torch.arange(2), 2)  # whether a policy keeps one of the two or not
    # The twin never trains long enough for a decision.
    skipper.policy.warm_up()
    with torch.inference_mode():
        model.forward(batch.to(config.device).inputs)
