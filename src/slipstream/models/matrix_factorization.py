"""Matrix factorization of users and items, trained on labels (logistic) or on pairs (BPR, Rendle et al., UAI 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from slipstream.data.batch import Batch, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.embedding import EmbeddingCollection, PlainEmbeddingCollection
from slipstream.errors import ConfigError
from slipstream.kernels import reference_triples, registry
from slipstream.models.base import (
    Engine,
    ModelConfigBase,
    Recommender,
    Vectors,
    draw_items,
    make_embeddings,
    other_than,
    position_of,
)


class MatrixFactorizationConfig(ModelConfigBase):
    """Matrix factorization."""

    name: Literal["mf"] = "mf"
    embedding_dim: int = Field(default=64, ge=2, le=4096)
    """Elements of a row, D: D - 1 factors, and last the bias of the user or item."""
    init: Literal["uniform", "normal"] = "normal"
    """How rows begin."""
    init_std: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    """Standard deviation of ``normal``."""
    user: str | None = None
    """Feature that names the user; None: the first."""
    item: str | None = None
    """Feature that names the item; None: the second."""
    objective: Literal["logistic", "bpr"] = "logistic"
    """Cross-entropy on the labels, or each positive ranked above an item drawn at random."""
    candidates: int = Field(default=1, ge=1, le=4096)
    """Items that BPR draws for each positive, to train against the one that the model now scores highest (dynamic
    negative sampling: Zhang, Chen, Wang, Yu, SIGIR 2013)."""
    negative_seed: int = Field(default=0, ge=0)
    """Seed of BPR's items."""


def user_and_item(config: MatrixFactorizationConfig, features: Sequence[FeatureInfo]) -> tuple[int, int]:
    """Positions of the two features that the model reads.

    Raises:
        ConfigError: There are no such two.
    """
    names = [feature.name for feature in features]
    user, item = position_of(names, config.user, 0), position_of(names, config.item, 1)
    if user == item or features[user].multi_hot or features[item].multi_hot:
        raise ConfigError("matrix factorization needs two different one-hot features, a user and an item")
    return user, item


class MatrixFactorization(Recommender):
    """Logit = global bias + item bias + user bias + user · item; other features of the data are not used.

    With ``bpr`` samples labelled 0 are left out, and every positive of the batch gets an item: drawn uniformly, or of
    several ``candidates`` so drawn the one with the highest score (row 0, which stands for unknown items, is not
    drawn). The draws hash the sample's index and the number of the training step, so a run can be repeated. Biases of
    users and the global one fall out of the loss, and stay as they are.
    """

    steps: Tensor

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_dense: int,
        config: MatrixFactorizationConfig,
        embeddings: nn.Module | None = None,
        *,
        engine: Engine = "slipstream",
    ) -> None:
        user, item = user_and_item(config, features)
        chosen = [features[user], features[item]]
        super().__init__(features, 0, config, embeddings or make_embeddings(chosen, config, engine))
        self.user, self.item = user, item
        self.num_users, self.num_items = features[user].num_rows, features[item].num_rows
        self.bias = nn.Parameter(torch.zeros(()))
        self.objective = config.objective
        self.negative_seed, self.candidates = config.negative_seed, config.candidates
        # Part of the state, so that a resumed training goes on with other items.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=config.objective == "bpr")

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``[B]``."""
        rows = self.embeddings(inputs.ids[:, [self.user, self.item]]).float()
        factors = rows[..., :-1]
        return self.bias + rows[..., -1].sum(1) + (factors[:, 0] * factors[:, 1]).sum(1)

    def vectors(self) -> Vectors:
        """Factors of all users and items, and the items' biases."""
        num_users = self.num_users
        # Both tables are looked up at once, as the model does it: the shorter one's rows are repeated, and left out.
        rows = torch.arange(max(num_users, self.num_items))
        ids = torch.stack([rows.clamp_max(num_users - 1), rows.clamp_max(self.num_items - 1)], dim=1)
        users, items = self.embeddings(ids.to(torch.int32)).float().unbind(1)
        users, items = users[:num_users], items[: self.num_items]
        names = self.feature_names
        return Vectors(names[self.user], names[self.item], users[:, :-1], items[:, :-1], items[:, -1])

    @property
    def adds_logit_offset(self) -> bool:
        """Not with BPR."""
        return self.objective == "logistic"

    def losses(self, batch: Batch) -> Tensor:
        """See the base class.

        Raises:
            ConfigError: The objective is BPR, whose loss is of pairs.
        """
        if self.objective != "logistic":
            raise ConfigError("BPR has no loss of single samples", remedy="use objective=logistic, or another policy")
        return super().losses(batch)

    def terms(self, batch: Batch) -> int:
        """The samples, or BPR's positives."""
        return len(batch) if self.objective == "logistic" else int((batch.labels > 0).sum())

    def loss(self, batch: Batch) -> Tensor:
        """Weighted cross-entropy, or BPR's −log σ(score of the positive − score of the drawn item)."""
        if self.objective == "logistic":
            return super().loss(batch)
        rows = (batch.labels > 0).nonzero().squeeze(1)
        users, items = (batch.inputs.ids[:, column].index_select(0, rows) for column in (self.user, self.item))
        drawn = draw_items(batch, rows, int(self.steps), self.num_items, self.negative_seed, self.candidates)
        self.steps += 1
        if self.candidates == 1:
            other = drawn[:, 0]
        else:
            other = self._hardest(users, other_than(items, drawn, self.num_items))
        margins = registry.margins(self._triples(torch.stack([users, items, other.to(items.dtype)], dim=1)).float())
        weights = batch.weights.index_select(0, rows)
        return (functional.softplus(-margins) * weights).sum() / max(rows.numel(), 1)

    def _triples(self, ids: Tensor) -> Tensor:
        """Rows ``[P, 3, D]`` of users, items and other items ``[P, 3]``."""
        tables = self.embeddings
        if isinstance(tables, EmbeddingCollection | PlainEmbeddingCollection):
            user, item = tables.one_hot_names
            return tables.gather((user, item, item), ids)
        # What else has a forward can be asked for pairs.
        rows, others = tables(torch.cat([ids[:, :2], ids[:, ::2]])).chunk(2)
        return torch.cat([rows, others[:, 1:]], dim=1)

    def _hardest(self, users: Tensor, drawn: Tensor) -> Tensor:
        """Of the items ``[P, K]`` drawn for users ``[P]`` those that the model scores highest, ``[P]``."""
        tables = self.embeddings
        if isinstance(tables, EmbeddingCollection | PlainEmbeddingCollection):
            user, item = (tables.tables[name].weight for name in tables.one_hot_names)
            return registry.hardest(user, item, users, drawn)
        with torch.no_grad():
            pairs = torch.stack([users.unsqueeze(1).expand_as(drawn), drawn.to(users.dtype)], dim=2)
            user, item = tables(pairs.flatten(0, 1)).float().unbind(1)
            scores = (user[:, :-1] * item[:, :-1]).sum(1) + item[:, -1]
        return reference_triples.chosen(drawn, scores.view(drawn.shape))
