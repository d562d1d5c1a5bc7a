"""A scikit-learn classifier over our tables and a policy, for data that fits in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,  # pyright: ignore[reportPrivateUsage]
    check_is_fitted,
    validate_data,
)
from torch import Tensor, nn
from torch.nn import functional

from slipstream.data.batch import Batch, Inputs
from slipstream.embedding import EmbeddingCollection, TableConfig
from slipstream.errors import ConfigError
from slipstream.evaluation.metrics import probabilities
from slipstream.optim import Adam, parameter_groups
from slipstream.policies import Skipper, build_policy

_SEEDED = Lock()
"""Held while torch's own generator, which all threads share, is seeded: modules draw their first weights from it."""
_PREDICT = 65_536
"""Samples predicted at a time."""


class _Wide(nn.Module):
    """Embeddings and numbers through an MLP, beside a linear part over both."""

    def __init__(self, rows: Sequence[int], numbers: int, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        tables = [TableConfig(str(column), count, dim, init="normal") for column, count in enumerate(rows)]
        self.embeddings = EmbeddingCollection(tables) if tables else None
        sizes = [len(rows) * dim + numbers, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.deep = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self.linear = nn.Linear(sizes[0], 1)

    def forward(self, inputs: Inputs) -> Tensor:
        parts = [] if self.embeddings is None else [self.embeddings(inputs.ids).flatten(1)]
        x = torch.cat([*parts, inputs.dense], dim=1).to(self.linear.weight.dtype)
        return (self.deep(x) + self.linear(x)).squeeze(1)


class SlipstreamClassifier(ClassifierMixin, BaseEstimator):
    """A binary classifier: embeddings of categorical columns, numbers standardised, an MLP and a linear part.

    Takes what scikit-learn's classifiers take, and works in its pipelines, searches and cross-validation. For logs that
    do not fit in memory there is :func:`slipstream.training.train`.

    Args:
        categorical_features: Positions of the columns that hold categories (any numbers), or a mask of the columns.
            What ``fit`` did not see has a row of its own.
        embedding_dim: Elements of a row.
        hidden: Units of the hidden layers.
        policy: Name of a policy that skips inputs or row updates, its settings as a dictionary with ``name``, or None.
        epochs: Passes over the samples.
        batch_size: Samples of a step.
        learning_rate: Adam's, of the dense part.
        embedding_lr: Of the tables; None: the same.
        random_state: Seed, or a generator of numpy's.

    Attributes:
        classes_: The two classes, [2].
        n_features_in_: Columns of X.
        n_iter_: Optimizer steps that were made.
        report_: What the policy skipped.
    """

    def __init__(
        self,
        categorical_features: Sequence[int] | Sequence[bool] | None = (),
        *,
        embedding_dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        policy: str | dict[str, Any] | None = None,
        epochs: int = 1,
        batch_size: int = 1024,
        learning_rate: float = 1e-3,
        embedding_lr: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.categorical_features = categorical_features
        self.embedding_dim = embedding_dim
        self.hidden = hidden
        self.policy = policy
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.embedding_lr = embedding_lr
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """Binary only."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SlipstreamClassifier:
        """Trains.

        Args:
            X: Numbers [N, F].
            y: Labels [N] of two classes.
            sample_weight: Factor of each sample's loss, [N].

        Raises:
            ValueError: As scikit-learn's classifiers do, on data that cannot be used; categories from 2^53 on, too.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(
                f"Only binary classification is supported. The type of the target is multiclass: {len(self.classes_)} "
                "classes."
            )
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {self.classes_.tolist()}")
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float32)
        self._learn_columns(X)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = [len(values) + 1 for values in self._categories]
        with _SEEDED, torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            self.model_ = _Wide(rows, len(self._numeric), self.embedding_dim, tuple(self.hidden))
        self._train(self._inputs(X), torch.from_numpy(labels.astype(np.float32)), weights, seed)
        return self

    def _learn_columns(self, X: np.ndarray[Any, Any]) -> None:
        columns = _columns(self.categorical_features, X.shape[1])
        for column in columns:
            if (confused := np.abs(X[:, column]) >= 2**53).any():
                raise ValueError(
                    f"categorical_features: row {int(confused.argmax())} of column {column} is 2^53 or more, where "
                    "float64, which X becomes, takes different values for the same; encode the column with "
                    "sklearn.preprocessing.OrdinalEncoder"
                )
        self._categorical = columns
        self._numeric = [column for column in range(X.shape[1]) if column not in columns]
        self._categories = [np.unique(X[:, column]) for column in columns]
        numbers = X[:, self._numeric]
        constant = numbers.max(0) == numbers.min(0)  # whose mean and deviation have rounding errors
        self._mean = np.where(constant, numbers[0], numbers.mean(0))
        self._scale = np.where(constant, 1.0, numbers.std(0))
        self._scale[self._scale == 0] = 1.0

    def _inputs(self, X: np.ndarray[Any, Any]) -> Inputs:
        ids = np.zeros((len(X), len(self._categorical)), dtype=np.int32)
        for place, (column, known) in enumerate(zip(self._categorical, self._categories, strict=True)):
            found = np.searchsorted(known, X[:, column]).clip(max=len(known) - 1)
            ids[:, place] = np.where(known[found] == X[:, column], found + 1, 0)  # 0: not seen
        numbers = (X[:, self._numeric] - self._mean) / self._scale
        return Inputs(torch.from_numpy(numbers.astype(np.float32)), torch.from_numpy(ids))

    def _train(self, inputs: Inputs, labels: Tensor, weights: Any, seed: int) -> None:
        model = self.model_
        optimizer = Adam(parameter_groups(model, self.learning_rate, self.embedding_lr))
        count = len(labels)
        given = torch.ones(count) if weights is None else torch.from_numpy(weights)
        # A sample that weighs nothing is one that is not there, for the policy too.
        there = given.nonzero().squeeze(1)
        whole = Batch(inputs, labels, torch.arange(count), given / given[there].mean()).select(there)
        policy = build_policy("none" if self.policy is None else self.policy)
        if policy.plans_order:
            raise ConfigError(
                f"policy {policy.name!r} plans the order of the samples, which fit shuffles",
                remedy="use slipstream with mode='periodic', or another policy",
            )
        skipper = Skipper(
            model,
            policy,
            batch_size=self.batch_size,
            seed=seed,
            total_samples=len(whole) * self.epochs,
            adds_logit_offset=True,
        )
        model.train()
        orders = torch.Generator().manual_seed(seed)
        for _ in range(self.epochs):
            order = torch.randperm(len(whole), generator=orders)
            for batch in skipper(whole.select(part) for part in order.split(self.batch_size)):
                logits = model(batch.inputs)
                logits = logits if batch.logit_offset is None else logits + batch.logit_offset
                losses = functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
                if skipper.policy.wants_losses:
                    skipper.observe(batch, losses.detach())
                optimizer.zero_grad()
                (losses * batch.weights).mean().backward()
                optimizer.step()
        skipper.detach()
        optimizer.zero_grad()
        model.eval()
        # What is predicted for a sample does not depend on the others in a call, up to float64's rounding.
        model.deep.double()
        model.linear.double()
        self.n_iter_ = skipper.steps
        self.report_ = skipper.report()

    def decision_function(self, X: Any) -> np.ndarray[Any, Any]:
        """Logits of the second class, float64 [N]."""
        check_is_fitted(self, "model_")
        checked: Any = validate_data(self, X, dtype=np.float64, reset=False)
        inputs = self._inputs(checked)
        pieces = zip(inputs.dense.split(_PREDICT), inputs.ids.split(_PREDICT), strict=True)
        with torch.no_grad():
            logits = [self.model_(Inputs(dense, ids)) for dense, ids in pieces]
        return torch.cat(logits).numpy()

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Probabilities of both classes, float64 [N, 2]."""
        positive = probabilities(self.decision_function(X))
        return np.stack([1.0 - positive, positive], axis=1)

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """The likelier class of each sample, [N]."""
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(np.int64)]


def _columns(given: Any, count: int) -> list[int]:
    """Positions of the columns meant: by position, from the end if negative, or by a mask of all ``count``.

    Raises:
        ValueError: There is no such column, or the mask is of another length.
    """
    columns = np.asarray([] if given is None else list(given) if isinstance(given, Iterable) else given)
    if columns.dtype == bool:
        if columns.shape != (count,):
            raise ValueError(f"categorical_features is a mask of {columns.size} columns, and X has {count}")
        return [int(column) for column in columns.nonzero()[0]]
    if columns.size and (columns.ndim != 1 or columns.dtype.kind not in "iu"):
        raise ValueError(f"categorical_features must be positions of columns or a mask of them, not {given!r}")
    if outside := [int(column) for column in columns if not -count <= column < count]:
        raise ValueError(f"categorical_features names column {outside[0]}, and X has {count} columns")
    return sorted({int(column) % count for column in columns})
