"""States of tables that have got more rows: a vocabulary that grew."""

from __future__ import annotations

import torch
from torch import Tensor

from slipstream.errors import ConfigError


def grow_rows(tensor: Tensor, rows: int, fill: float = 0) -> Tensor:
    """The same [R, …] with ``rows`` rows, those that are new filled with ``fill``; itself where there are none.

    Raises:
        ConfigError: It has more rows already.
    """
    missing = rows - len(tensor)
    if missing < 0:
        raise ConfigError(f"a table of {len(tensor)} rows cannot become one of {rows}: rows are never taken away")
    if not missing:
        return tensor
    return torch.cat([tensor, torch.full((missing, *tensor.shape[1:]), fill, dtype=tensor.dtype)])
