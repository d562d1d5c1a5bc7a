"""Two towers: a vector for the user's side and one for the item's, and their dot product (Yi et al., RecSys 2019).

Trained on labels (logistic), or on positives alone by the softmax over the batch's items, as in the article.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from slipstream.data.batch import Batch, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.errors import ConfigError
from slipstream.models.base import ModelConfigBase, Recommender, Vectors, Widths, position_of
from slipstream.models.layers import mlp

_PIECE = 8192
"""Users and items that go through their towers at a time."""


class TwoTowerConfig(ModelConfigBase):
    """Two towers."""

    name: Literal["two_tower"] = "two_tower"
    item_features: tuple[str, ...] = ()
    """Features of the item's tower, all others are the user's; empty: the second feature alone."""
    layers: Widths = (128, 64)
    """Widths of both towers' MLPs; the last is the size of the vectors."""
    temperature: float = Field(default=0.1, gt=0.0, allow_inf_nan=False)
    """The cosine of the two vectors is divided by it."""
    objective: Literal["logistic", "softmax"] = "logistic"
    """Cross-entropy on the labels, or each positive's item told from the items of the batch's other positives."""


class TwoTower(Recommender):
    """Logit = cosine of the two towers' vectors / temperature + bias. Dense columns go to the user's tower.

    With ``softmax`` samples labelled 0 are left out. A batch holds popular items more often than others, which would
    push them down: the log of each item's share of the positives so far is taken off its logits [paper]; the shares are
    counted exactly [ours], where the article estimates them from the gaps between two occurrences. Where an item occurs
    twice in the batch, it is no negative of itself.
    """

    user_rows: Tensor
    item_rows: Tensor
    seen: Tensor

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_dense: int,
        config: TwoTowerConfig,
        embeddings: nn.Module | None = None,
    ) -> None:
        super().__init__(features, num_dense, config, embeddings)
        if not config.layers:
            raise ConfigError("two_tower: layers must name at least one width")
        items = [position_of(self.feature_names, name, 1) for name in config.item_features or (None,)]
        users = [position for position in range(len(features)) if position not in items]
        if not users:
            raise ConfigError("two_tower: every feature is in the item's tower", remedy="leave one for the user's")
        self.register_buffer("user_rows", torch.tensor(users), persistent=False)
        self.register_buffer("item_rows", torch.tensor(sorted(items)), persistent=False)
        dim = config.embedding_dim
        self.user_tower = mlp([len(users) * dim + num_dense, *config.layers], last_relu=False)
        self.item_tower = mlp([len(items) * dim, *config.layers], last_relu=False)
        self.num_rows = tuple(feature.num_rows for feature in features)
        self.multi_hot = any(feature.multi_hot for feature in features)
        self.scale = 1.0 / config.temperature
        self.bias = nn.Parameter(torch.zeros(()))
        self.objective = config.objective
        softmax = config.objective == "softmax"
        if softmax and (len(items) != 1 or features[items[0]].multi_hot):
            raise ConfigError(
                "two_tower: objective=softmax needs one item feature, with one id a sample",
                remedy="use objective=logistic",
            )
        # Part of the state, so that a resumed training goes on with the same shares.
        counts = torch.ones(features[items[0]].num_rows if softmax else 0)
        self.register_buffer("seen", counts, persistent=softmax)

    def towers(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Vectors of length 1 of the users' and of the items' side, each ``[B, layers[-1]]``."""
        rows = self.look_up(inputs)
        user = rows.index_select(1, self.user_rows).flatten(1)
        if self.num_dense:
            user = torch.cat([inputs.dense, user.to(inputs.dense.dtype)], dim=1)
        item = rows.index_select(1, self.item_rows).flatten(1)
        return (
            functional.normalize(self.user_tower(user).float(), dim=1),
            functional.normalize(self.item_tower(item).float(), dim=1),
        )

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``[B]``."""
        user, item = self.towers(inputs)
        return (user * item).sum(1) * self.scale + self.bias

    def loss(self, batch: Batch) -> Tensor:
        """Weighted cross-entropy of the labels, or of each positive's item among those of the batch."""
        if self.objective == "logistic":
            return super().loss(batch)
        positive = batch.select(batch.labels > 0)
        user, item = self.towers(positive.inputs)
        # With a row cache ids are on the host, whatever the device.
        ids = positive.inputs.ids[:, int(self.item_rows)].long().to(self.seen.device)
        if self.training:
            self.seen.index_add_(0, ids, torch.ones_like(ids, dtype=self.seen.dtype))
        log_share = torch.log(self.seen.index_select(0, ids) / self.seen.sum())
        # Every pass over the logits, which are as many as the positives squared, costs as much as the product.
        # Under autocast the product is bfloat16, in which the shares would be rounded.
        logits = torch.mm(user * self.scale, item.T).float().sub_(log_share)
        again = (ids[:, None] == ids).fill_diagonal_(False)
        logits = logits.masked_fill_(again, -torch.inf)
        losses = functional.cross_entropy(logits, torch.arange(ids.numel(), device=ids.device), reduction="none")
        return (losses * positive.weights).sum() / max(ids.numel(), 1)

    @property
    def separable(self) -> bool:
        """Not with the softmax."""
        return self.objective == "logistic"

    @property
    def adds_logit_offset(self) -> bool:
        """Not with the softmax."""
        return self.objective == "logistic"

    def losses(self, batch: Batch) -> Tensor:
        """See the base class.

        Raises:
            ConfigError: The objective is the softmax, whose loss is of a whole batch.
        """
        if self.objective != "logistic":
            raise ConfigError(
                "the softmax has no loss of single samples", remedy="use objective=logistic, or another policy"
            )
        return super().losses(batch)

    def vectors(self) -> Vectors | None:
        """The towers' vectors; None where a tower reads more than the user's or the item's id."""
        if self.num_dense or len(self.user_rows) != 1 or len(self.item_rows) != 1 or self.multi_hot:
            return None
        user, item = int(self.user_rows), int(self.item_rows)
        num_users, num_items = self.num_rows[user], self.num_rows[item]
        # Both towers run at once: the shorter table's rows are repeated, and left out.
        rows = torch.arange(max(num_users, num_items))
        ids = torch.empty(rows.numel(), 2, dtype=torch.int32)
        ids[:, user], ids[:, item] = rows.clamp_max(num_users - 1), rows.clamp_max(num_items - 1)
        pieces = [self.towers(Inputs(torch.empty(len(piece), 0), piece)) for piece in ids.split(_PIECE)]
        users, items = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        names = self.feature_names
        return Vectors(
            names[user], names[item], users[:num_users] * self.scale, items[:num_items], torch.zeros(num_items)
        )
