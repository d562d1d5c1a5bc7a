"""A trained model as one ``model.safetensors``: weights, and beside them what is needed to build it and to feed it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from slipstream.data.atomic import atomic_file, by_umask
from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store
from slipstream.errors import ConfigError, DataError, first_problem
from slipstream.models import MatrixFactorizationConfig, ModelConfig, Recommender, build_model
from slipstream.models.matrix_factorization import user_and_item

_CONFIG: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
FORMAT_VERSION = 1


class Wanted(BaseModel):
    """What a model needs of data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    features: tuple[FeatureInfo, ...]
    """Its sparse features, one-hot ones first."""
    num_dense: int = Field(ge=0)
    """Its dense columns."""
    encoder: str | None = None
    """Sha256 of the file that says how raw values became ids; None where the data has none (synthetic)."""

    @classmethod
    def of(cls, store: Store) -> Wanted:
        """What a model trained on ``store`` needs."""
        encoder = store.manifest.files.get("encoder.json")
        return cls(
            features=store.features, num_dense=store.num_dense, encoder=None if encoder is None else encoder.sha256
        )

    def check(self, store: Store) -> None:
        """Whether ``store`` can be scored, or trained on further.

        Its vocabulary may extend the model's: rows from ``num_rows`` on are then values that the model does not know.

        Raises:
            DataError: It has other columns, or its ids mean something else.
        """
        from slipstream.data.encoder import lineage  # a training needs none of it, nor the libraries under it

        found = Wanted.of(store)
        remedy = "prepare it with --extend-vocabulary, naming the training data"
        extended = self.encoder is not None and self.encoder in lineage(store.path)
        features = found.features
        if extended and len(features) == len(self.features):
            pairs = zip(self.features, features, strict=True)
            features = tuple(
                mine if mine == new.model_copy(update={"num_rows": mine.num_rows}) else new for mine, new in pairs
            )
        if (features, found.num_dense) != (self.features, self.num_dense):
            raise DataError("has other features than the model was trained on", file=store.path, remedy=remedy)
        if found.encoder != self.encoder and not extended:
            raise DataError("was encoded differently from the training data", file=store.path, remedy=remedy)


def save_model(model: Recommender, config: ModelConfig, store: Store, path: Path) -> None:
    """Writes a model, atomically.

    Args:
        model: The model.
        config: What it was built from.
        store: What it was trained on.
        path: The file.
    """
    metadata = {
        "model": _CONFIG.dump_json(config).decode(),
        "data": Wanted.of(store).model_dump_json(),
    }
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    with atomic_file(path) as partial, by_umask(partial):
        save_file(weights, partial, metadata=metadata)
        _order_metadata(partial)


def _order_metadata(path: Path) -> None:
    """Sorts a file's metadata: safetensors writes them in an order of the moment, and equal models as unequal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # spaces at its end are part of the format
            file.seek(8)
            file.write(text.ljust(size))


def read_wanted(path: Path) -> Wanted:
    """What a saved model needs of data.

    Raises:
        DataError: The file is missing or damaged.
    """
    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return Wanted.model_validate_json((file.metadata() or {})["data"])
    except (SafetensorError, OSError, KeyError, ValidationError) as error:
        raise DataError("is damaged or no model", file=path, remedy=_REMEDY) from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError("no model", file=path, remedy="name a folder given to `slipstream train --out`")


def load_model(path: Path) -> tuple[Recommender, Wanted]:
    """Reads a model, with our tables, in evaluation mode.

    Raises:
        DataError: The file is missing, damaged or of a newer version.
    """
    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if not {"model", "data"} <= metadata.keys():
                raise DataError("says nothing about its model", file=path, remedy=_REMEDY)
            version = _Version.model_validate_json(metadata["data"]).format_version
            if version > FORMAT_VERSION:
                what = f"has format {version}, this slipstream reads up to {FORMAT_VERSION}"
                raise DataError(what, file=path, remedy="update slipstream-rec")
            config = _CONFIG.validate_json(metadata["model"])
            wanted = Wanted.model_validate_json(metadata["data"])
            _check_shapes(file, config, wanted, path)
            model = build_model(config, wanted.features, wanted.num_dense)
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    except ValidationError as error:
        raise DataError(f"is damaged ({first_problem(error)})", file=path, remedy=_REMEDY) from error
    except (SafetensorError, ConfigError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"is damaged or no model ({reason})", file=path, remedy=_REMEDY) from error
    wrong = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise DataError(f"{wrong[0]} holds NaN or infinite weights", file=path, remedy=_REMEDY)
    model.eval()
    return model, wanted


_REMEDY = "train the run again"
_MAX_TENSORS = 20_000


def _check_shapes(file: Any, config: ModelConfig, wanted: Wanted, path: Path) -> None:
    """Compares names and shapes before any memory is taken for them: what the file says may be far larger than it is.

    Raises:
        DataError: The tensors are not those of the model that the file names.
    """
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    held = sum(math.prod(shape) for shape in found.values())
    features, num_dense, remedy = wanted.features, wanted.num_dense, _REMEDY
    if isinstance(config, MatrixFactorizationConfig):  # reads two features, and nothing else
        features, num_dense = [features[position] for position in user_and_item(config, features)], 0
    named = sum(feature.num_rows for feature in features) * config.embedding_dim
    if named > held or len(found) > _MAX_TENSORS or num_dense > held:
        raise DataError("holds fewer weights than the model that it names", file=path, remedy=remedy)
    with torch.device("meta"):
        model = build_model(config, wanted.features, wanted.num_dense)
    state = model.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            shapes = f"{found.get(name, 'missing')}, the model that it names has {expected.get(name, 'none')}"
            what = f"tensor {name} is {shapes}"
            raise DataError(what, file=path, remedy=remedy)
        kind = ("F", "BF") if state[name].is_floating_point() else ("I", "U")
        if not file.get_slice(name).get_dtype().startswith(kind):
            raise DataError(f"tensor {name} holds {file.get_slice(name).get_dtype()}", file=path, remedy=remedy)


class _Version(BaseModel):
    format_version: int = Field(ge=1)
