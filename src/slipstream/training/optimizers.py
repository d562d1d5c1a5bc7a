"""Optimizers from their configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipstream import optim
from slipstream.embedding import CachedEmbeddingCollection
from slipstream.errors import ConfigError
from slipstream.optim.row_step import RowStep
from slipstream.training.config import OptimizerConfig, OptimizerName

_OURS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": optim.SGD,
    "adagrad": optim.Adagrad,
    "rowwise_adagrad": optim.RowwiseAdagrad,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
}
_TORCH_DENSE: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
_TORCH_TABLES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.SparseAdam,
}


def state_elements(config: OptimizerConfig, dim: int) -> int:
    """Elements of state that a table's optimizer keeps for a row of ``dim`` elements."""
    catch_up = int(config.on_skip == "catch_up")
    if config.name in ("adam", "adamw"):
        return 2 * dim + catch_up
    if config.name == "sgd":
        return (dim if config.momentum else 0) + catch_up
    return (1 if config.name == "rowwise_adagrad" else dim) + catch_up


def build_optimizers(
    model: nn.Module, config: OptimizerConfig, engine: str, *, seed: int = 0
) -> list[torch.optim.Optimizer]:
    """One optimizer over everything, or one for the dense part and one for the tables where they differ.

    Args:
        model: The model.
        config: Settings.
        engine: ``slipstream``, ``torch`` or ``xdl``; the last two have torch's optimizers.
        seed: Key of the draws by which rows with a gate between 0 and 255 are updated.

    Raises:
        ConfigError: ``momentum`` or ``betas`` are set, and no optimizer has them.
    """
    used, defaults = {config.name, config.dense_name or config.name}, OptimizerConfig()
    for name, having in (("momentum", {"sgd"}), ("betas", {"adam", "adamw"})):
        if getattr(config, name) != getattr(defaults, name) and not used & having:
            what = f"optimizer.{name} does nothing with {config.name}"
            raise ConfigError(what, remedy=f"leave it out, or use {' or '.join(sorted(having))}")
    optimizers = _built(model, config, engine)
    for optimizer in optimizers:
        if isinstance(optimizer, RowStep):
            optimizer.gate_seed = seed
            for module in model.modules():
                if isinstance(module, CachedEmbeddingCollection):
                    module.attach(optimizer)
    return optimizers


def _built(model: nn.Module, config: OptimizerConfig, engine: str) -> list[torch.optim.Optimizer]:
    groups = optim.parameter_groups(model, config.lr, config.embedding_lr)
    dense_name = config.dense_name or config.name
    if engine == "slipstream" and dense_name == config.name:
        for group in groups:
            # One pass over each dense parameter instead of one for each operation.
            group["fused"] = True if not group["tables"] and _on_cpu(group) else None
        return [_OURS[config.name](groups, **_arguments(config.name, config), **_row_options(config))]  # type: ignore[call-arg]
    built: list[torch.optim.Optimizer] = []
    for group in groups:
        name = config.name if group["tables"] else dense_name
        arguments = _arguments(name, config)
        if not group["tables"]:
            arguments["fused"] = True
            built.append(_TORCH_DENSE[name]([group], **arguments))
        elif engine == "slipstream":
            built.append(_OURS[name]([group], **arguments, **_row_options(config)))  # type: ignore[call-arg]
        else:
            if name == "adam":
                del arguments["weight_decay"]  # SparseAdam has none; the configuration refuses any but 0
            built.append(_TORCH_TABLES[name]([group], **arguments))
    return built


def _on_cpu(group: dict[str, Any]) -> bool:
    return all(parameter.device.type == "cpu" for parameter in group["params"])


def _arguments(name: OptimizerName, config: OptimizerConfig) -> dict[str, Any]:
    arguments: dict[str, Any] = {"weight_decay": config.weight_decay}
    if name in ("adam", "adamw"):
        arguments["betas"] = config.betas
    elif name == "sgd":
        arguments["momentum"] = config.momentum
    return arguments


def _row_options(config: OptimizerConfig) -> dict[str, Any]:
    return {"untouched": config.untouched, "on_skip": config.on_skip}
