"""A trained model as one ``model.safetensors``: weights, and beside them what is needed to build it and to feed it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from slipstream.data.atomic import atomic_file
from slipstream.data.encoder import lineage
from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store
from slipstream.errors import DataError
from slipstream.models import ModelConfig, Recommender, build_model

_CONFIG: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
FORMAT_VERSION = 1


class Wanted(BaseModel):
    """What a model needs of data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    features: tuple[FeatureInfo, ...]
    """Its sparse features, one-hot ones first."""
    num_dense: int
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
    with atomic_file(path) as partial:
        save_file(weights, partial, metadata=metadata)


def read_wanted(path: Path) -> Wanted:
    """What a saved model needs of data.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return Wanted.model_validate_json((file.metadata() or {})["data"])
    except (SafetensorError, OSError, KeyError, ValidationError) as error:
        raise DataError("is damaged or no model", file=path) from error


def load_model(path: Path) -> tuple[Recommender, Wanted]:
    """Reads a model, with our tables, in evaluation mode.

    Raises:
        DataError: The file is missing, damaged or of a newer version.
    """
    if not path.is_file():
        raise DataError("no model", file=path, remedy="name a folder given to `slipstream train --out`")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            config = _CONFIG.validate_json(metadata["model"])
            if json.loads(metadata["data"]).get("format_version", 0) > FORMAT_VERSION:
                raise DataError("was written by a newer version", file=path, remedy="update slipstream-rec")
            wanted = Wanted.model_validate_json(metadata["data"])
            model = build_model(config, wanted.features, wanted.num_dense)
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, KeyError, ValidationError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(f"is damaged or no model ({reason})", file=path) from error
    model.eval()
    return model, wanted
