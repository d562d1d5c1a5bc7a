"""Arithmetic of lower bounds: the bytes that a row update must move, the products and bytes of a DLRM step.

Letters: B samples, F one-hot features, D elements of a row, U distinct rows of a batch, s state of a row in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from slipstream.bench.probe import LINE, lines

OPTIMIZERS = ("sgd", "rowwise_adagrad", "adagrad", "adam")


def state_bytes(optimizer: str, dim: int) -> tuple[int, ...]:
    """Bytes of each state that an optimizer keeps of a row: none, one float, a row, or two."""
    return {"sgd": (), "rowwise_adagrad": (4,), "adagrad": (4 * dim,), "adam": (4 * dim, 4 * dim)}[optimizer]


class Moved(NamedTuple):
    """Bytes that have to go through the memory bus."""

    streamed: int
    """In order: ids and gradients read, outputs written."""
    scattered: int
    """In random places, whole cache lines."""

    def seconds(self, stream_rate: float, row_rate: float) -> float:
        """Time that they take at the two measured rates, in bytes a second, one after the other."""
        return self.streamed / stream_rate + self.scattered / row_rate


def update_bytes(optimizer: str, dim: int, lookups: int, unique: int) -> Moved:
    """What a row update has to move at least.

    Per lookup its id (4 bytes) and gradient (4 D bytes) are read once, in order. Per distinct row weight and state are
    read once and written once; memory moves whole lines of 64 bytes, so that the 4 bytes of row-wise Adagrad's sum take
    a line of their own:

        streamed = lookups (4 + 4 D)
        scattered = U · 2 · 64 · (⌈4 D / 64⌉ + Σ ⌈s / 64⌉)

    Finding duplicates takes no byte of memory: the kernel's hash table stays in the cache. Nor does arithmetic count:
    the processor does it while it waits. Rows that a cache still holds cost less: the bound is for tables far larger.

    Args:
        optimizer: One of ``OPTIMIZERS``.
        dim: D.
        lookups: B · F.
        unique: U.
    """
    row = lines(4 * dim) + sum(lines(size) for size in state_bytes(optimizer, dim))
    return Moved(lookups * (4 + 4 * dim), unique * 2 * LINE * row)


def lookup_bytes(dim: int, lookups: int, unique: int) -> Moved:
    """What a lookup has to move: per lookup the id read and the row written, per distinct row its lines read once."""
    return Moved(lookups * (4 + 4 * dim), unique * LINE * lines(4 * dim))


class Product(NamedTuple):
    """A matrix product [m, k] · [k, n], or ``batch`` of them."""

    what: str
    m: int
    k: int
    n: int
    batch: int = 0

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.k * self.n * max(self.batch, 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """A DLRM and its batch."""

    batch_size: int
    num_dense: int
    bottom: tuple[int, ...]
    """Hidden widths; a layer of ``dim`` follows."""
    top: tuple[int, ...]
    """Hidden widths; a layer of 1 follows."""
    features: int
    dim: int

    @property
    def vectors(self) -> int:
        """Vectors that interact: the features and the bottom MLP's."""
        return self.features + 1

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Widths in and out of every linear layer, the first being the first of the bottom."""
        pairs = self.vectors * (self.vectors - 1) // 2
        return [
            *pairwise((self.num_dense, *self.bottom, self.dim)),
            *pairwise((self.dim + pairs, *self.top, 1)),
        ]

    @property
    def dense_parameters(self) -> int:
        """Weights and biases."""
        return sum(before * after + after for before, after in self.layers)


def products(shape: Shape) -> list[Product]:
    """The matrix products of a training step.

    Per linear layer from i to o: forward [B, i] · [i, o], gradient of the input [B, o] · [o, i] (not of the first
    layer: nobody needs the gradient of the data), gradient of the weights [o, B] · [B, i]. The interaction is B
    products [V, D] · [D, V] forward and [V, V] · [V, D] backward. Operations are 2 m k n each.
    """
    size, found = shape.batch_size, list[Product]()
    for number, (before, after) in enumerate(shape.layers):
        name = f"{before}-{after}"
        found.append(Product(f"{name} forward", size, before, after))
        if number:
            found.append(Product(f"{name} gradient of the input", size, after, before))
        found.append(Product(f"{name} gradient of the weights", after, size, before))
    found.append(Product("interaction forward", shape.vectors, shape.dim, shape.vectors, size))
    found.append(Product("interaction backward", shape.vectors, shape.vectors, shape.dim, size))
    return found


def step_bytes(shape: Shape, optimizer: str, unique: int) -> Moved:
    """Bytes of a step beside its products, whose operands are part of their own time.

    Lookup and row update as above; the data (dense columns, labels) read once; per dense parameter its gradient read,
    itself and its state read and written. Activations could be fused into the products: they count nothing.

    Args:
        shape: Model and batch.
        optimizer: One of ``OPTIMIZERS``; of ``rowwise_adagrad`` the dense part has a whole sum.
        unique: Distinct rows of a batch.
    """
    lookups = shape.batch_size * shape.features
    read, updated = lookup_bytes(shape.dim, lookups, unique), update_bytes(optimizer, shape.dim, lookups, unique)
    data = shape.batch_size * (shape.num_dense + 1) * 4
    floats = {"sgd": 3, "adagrad": 5, "rowwise_adagrad": 5, "adam": 7}[optimizer]
    dense = 4 * floats * shape.dense_parameters
    return Moved(read.streamed + updated.streamed + data + dense, read.scattered + updated.scattered)
