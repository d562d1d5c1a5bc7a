"""RecBole's BPR and NeuMF with its own data set, sampler, loader and trainer: ``_train_epoch``, epoch by epoch."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import examples.recbole.numpy_names  # noqa: F401  # isort: skip
import numpy as np
import numpy.typing as npt
import torch
from benchmarks.peers.arrays import Arrays
from benchmarks.peers.pairs import Vectors
from benchmarks.peers.protocol import Fit, Fitted, Job, Point
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

LISTS = 20
"""Items in the lists that NeuMF gives, which has no vectors."""


def versions() -> dict[str, str]:
    """Of the packages that do the work."""
    return {name: version(name) for name in ("torch", "recbole")}


def make(job: Job) -> RecBole:
    """The contestant."""
    torch.set_num_threads(job.threads)
    return RecBole(job)


class RecBole:
    """See the module.

    Args:
        job: ``settings``: model (BPR or NeuMF) and RecBole's own settings of it.
    """

    def __init__(self, job: Job) -> None:
        data, settings = Arrays.load(job.data), dict(job.settings)
        self.name, self.sizes, self.count = settings.pop("model"), data.rows, job.train[1]
        self.train_pairs = np.asarray(data.ids[: job.train[1]])
        self.test_users = np.unique(data.ids[slice(*job.test), 0])
        self.folder = tempfile.TemporaryDirectory()
        _write(Path(self.folder.name), self.train_pairs)
        config = Config(
            model=self.name,
            dataset="pairs",
            config_dict={
                "data_path": self.folder.name,
                "checkpoint_dir": self.folder.name,
                "USER_ID_FIELD": "user_id",
                "ITEM_ID_FIELD": "item_id",
                "load_col": {"inter": ["user_id", "item_id"]},
                # Everything in the file is for training; what is held out, the driver scores.
                "eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "RO", "group_by": None, "mode": "full"},
                "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
                "use_gpu": False,
                "show_progress": False,
                "state": "CRITICAL",
                "seed": job.seed,
                **settings,
            },
        )
        init_seed(job.seed, True)
        dataset = create_dataset(config)
        self.tokens = {name: dataset.field2id_token[name] for name in ("user_id", "item_id")}
        self.batches = data_preparation(config, dataset)[0]
        self.model: Any = get_model(self.name)(config, self.batches.dataset)
        self.trainer: Any = get_trainer(config["MODEL_TYPE"], self.name)(config, self.model)
        self.rows, self.epochs = sum(data.rows), job.epochs

    def table_bytes(self) -> int:
        """Tables and Adam's two moments."""
        tables = [p for name, p in self.model.named_parameters() if "embedding" in name]
        return 3 * sum(p.nbytes for p in tables)

    def fit(self, request: Fit) -> Fitted:
        """Trains so many epochs."""
        vectors = Vectors(request.out, self.count, self.epochs)
        seconds = 0.0
        for epoch in range(self.epochs):
            began = perf_counter()
            self.trainer._train_epoch(self.batches, epoch)
            spent = perf_counter() - began
            if self.name == "BPR":
                users, items = self.model.user_embedding.weight, self.model.item_embedding.weight
                vectors.keep(spent, self._rows(users, "user_id", 0), self._rows(items, "item_id", 1))
            seconds += spent
        if self.name == "BPR":
            return Fitted(vectors.points)
        file = Path(request.out) / "lists.npy"
        np.save(file, self._lists())
        np.save(file.with_name("users.npy"), self.test_users)
        return Fitted([Point(self.epochs * self.count, seconds, [str(file)])])

    def _rows(self, weight: torch.Tensor, field: str, column: int) -> npt.NDArray[np.float32]:
        """The table in the order of the data's rows; rows that RecBole has not seen score 0."""
        own = weight.detach().numpy()
        ordered = np.zeros((self.sizes[column], own.shape[1]), dtype=np.float32)
        ordered[self.tokens[field][1:].astype(np.int64)] = own[1:]
        return ordered

    def _lists(self) -> npt.NDArray[np.int64]:
        """For each of the users that are scored its best items, those of the training left out."""
        item_of = self.tokens["item_id"][1:].astype(np.int64)
        own_user = {int(token): number for number, token in enumerate(self.tokens["user_id"][1:], start=1)}
        order = self.train_pairs[self.train_pairs[:, 0].argsort(kind="stable")]
        own_item = np.zeros(self.sizes[1], dtype=np.int64)
        own_item[item_of] = np.arange(1, len(item_of) + 1)
        lists = np.full((len(self.test_users), LISTS), -1, dtype=np.int64)
        items = torch.arange(1, len(item_of) + 1)
        self.model.eval()
        with torch.no_grad():
            for place, user in enumerate(self.test_users.tolist()):
                if user not in own_user:
                    continue
                scores = self.model.forward(torch.full_like(items, own_user[user]), items).reshape(-1).clone()
                first, last = np.searchsorted(order[:, 0], [user, user + 1])
                scores[torch.from_numpy(own_item[order[first:last, 1]] - 1)] = -torch.inf
                lists[place] = item_of[scores.topk(LISTS).indices.numpy()]
        self.model.train()
        return lists


def _write(folder: Path, pairs: npt.NDArray[np.int32]) -> None:
    """RecBole's file of interactions."""
    (folder / "pairs").mkdir()
    lines = ["user_id:token\titem_id:token", *(f"{user}\t{item}" for user, item in pairs.tolist())]
    (folder / "pairs" / "pairs.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
