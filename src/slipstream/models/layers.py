"""Parts that several models use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slipstream.kernels import registry
from slipstream.models.mlp import MLP

_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has but the latter


def mlp(sizes: Sequence[int], *, last_relu: bool = True) -> MLP:
    """Linear layers with ReLU between them, initialised as in facebookresearch/dlrm.

    Weights are normal with variance 2 / (in + out), biases with variance 1 / out.

    Args:
        sizes: Width of the input, then of each layer.
        last_relu: Whether a ReLU follows the last layer too.
    """
    layers: list[nn.Module] = []
    for position, (before, after) in enumerate(pairwise(sizes)):
        linear = nn.Linear(before, after)
        if linear.weight.device.type != "meta":  # there torch would import its compiler: 125 MB
            nn.init.normal_(linear.weight, 0.0, math.sqrt(2.0 / (before + after)))
            nn.init.normal_(linear.bias, 0.0, math.sqrt(1.0 / after))
        layers.append(linear)
        if last_relu or position < len(sizes) - 2:
            layers.append(nn.ReLU())
    return MLP(*layers)


def head(inputs: int, hidden: Sequence[int]) -> MLP:
    """An MLP that ends in one logit."""
    return mlp([inputs, *hidden, 1], last_relu=False)


def _products(vectors: Tensor, ahead: bool, pairs: Tensor) -> Tensor:
    """Dot products of all pairs, by torch's operators."""
    products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, pairs)
    return torch.cat([vectors[:, 0], products], dim=1) if ahead else products


class _Dots(torch.autograd.Function):
    """Dot products of all pairs of vectors, by a kernel, or with one ``bmm`` each way where there is none.

    The gradient of pair (i, j) goes to both vectors. Autograd would multiply by the lower triangle and by its
    transpose; the symmetric matrix needs a single product.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, ahead: bool, pairs: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, places)
        ctx.ahead = ahead
        if registry.has_dots(vectors):
            return registry.dots(vectors, ahead)
        return _products(vectors, ahead, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        vectors, places = ctx.saved_tensors
        if registry.has_dots(vectors):
            return registry.dots_gradients(vectors, gradients[0], ctx.ahead), None, None, None
        batch, count, dim = vectors.shape
        # The column of zeros is what the diagonal reads: a vector's product with itself is no feature.
        ahead, of_pairs = gradients[0].split([dim if ctx.ahead else 0, count * (count - 1) // 2], dim=1)
        padded = torch.cat([of_pairs, of_pairs.new_zeros(batch, 1)], dim=1)
        symmetric = padded.index_select(1, places).view(batch, count, count)
        made = torch.bmm(symmetric.to(vectors.dtype), vectors)
        if ctx.ahead:
            made[:, 0] += ahead
        return made, None, None, None


class DotInteraction(nn.Module):
    """Dot products of all pairs of V vectors, ``[B, V, D]`` → ``[B, V (V - 1) / 2]``.

    The order is (1, 0), (2, 0), (2, 1), and so on, a row of the lower triangle after the other.

    Args:
        count: V.
        ahead: Whether the first vector stands ahead of the products, in D more columns.
    """

    pairs: Tensor
    places: Tensor

    def __init__(self, count: int, *, ahead: bool = False) -> None:
        super().__init__()
        # In NumPy: on the meta device torch would import its compiler for these few numbers.
        rows, columns = np.tril_indices(count, -1)
        places = np.full((count, count), rows.size)
        places[rows, columns] = places[columns, rows] = np.arange(rows.size)
        device = torch.get_default_device()
        # int32: half the traffic of index_select.
        for name, values in (("pairs", rows * count + columns), ("places", places.reshape(-1))):
            self.register_buffer(name, torch.from_numpy(values.astype(np.int32)).to(device), persistent=False)
        self.num_pairs, self.ahead = rows.size, ahead

    def forward(self, vectors: Tensor) -> Tensor:
        """See the class."""
        if torch.is_autocast_enabled(vectors.device.type):
            vectors = vectors.to(torch.get_autocast_dtype(vectors.device.type))
        if _is_exporting():  # exported programs run where our kernel's operator is not known
            return _products(vectors, self.ahead, self.pairs)
        return _Dots.apply(vectors, self.ahead, self.pairs, self.places)


class CrossNetwork(nn.Module):
    """Cross layers of DCN-V2: x ← x0 ⊙ (W x + b) + x.

    Wang et al., WWW 2021, equation 1; with a rank equation 2.

    Args:
        width: Elements of x.
        depth: Layers.
        rank: Rank of W as U Vᵀ; None: full.
    """

    def __init__(self, width: int, depth: int, rank: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(depth)
        )

    def forward(self, x0: Tensor) -> Tensor:
        """``[B, width]`` to the same."""
        x = x0
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x).to(x0.dtype))
        return x
