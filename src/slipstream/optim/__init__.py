"""Optimizers over dense parameters and tables together."""

from slipstream.optim.clip import clip_grad_norm_
from slipstream.optim.groups import parameter_groups, table_parameters
from slipstream.optim.optimizers import SGD, Adagrad, Adam, AdamW, RowwiseAdagrad
from slipstream.optim.row_step import OnSkip, Untouched

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "OnSkip",
    "RowwiseAdagrad",
    "Untouched",
    "clip_grad_norm_",
    "parameter_groups",
    "table_parameters",
]
