"""Raw files become a store: one pass fits the encoder, a second encodes, both over chunks and with bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from slipstream.data.encoder import Encoder
from slipstream.data.formats import open_raw
from slipstream.data.manifest import MANIFEST, read_manifest
from slipstream.data.names import FORMATS
from slipstream.data.options import PrepareOptions, as_before, negative_options
from slipstream.data.passes import Passes
from slipstream.data.raw_batches import encode_raw
from slipstream.data.rewrite import rewrite, time_order
from slipstream.data.schema import Schema
from slipstream.data.stage import stage_folder
from slipstream.data.store import Store
from slipstream.data.writer import check_target, real_target
from slipstream.errors import DataError, SlipstreamError

__all__ = ["FORMATS", "PrepareOptions", "encode_raw", "open_or_prepare", "prepare"]


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    schema: Schema | None = None,
    options: PrepareOptions | None = None,
    extend: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> Store:
    """Prepares raw files.

    Args:
        source: A file or folder; see :func:`~slipstream.data.formats.open_raw`.
        out: Folder of the store.
        format: One of ``FORMATS``; None: detected.
        schema: What the columns are, for the formats ``csv`` and ``parquet``; None: inferred.
        options: See :class:`PrepareOptions`.
        extend: A prepared data set whose vocabularies are extended: values that it knows keep their ids, new ones come
            after them, dense columns are transformed as there, and options that are not given are those of there
            (negatives, ``min_frequency``, ``nan``). For the next slice of data that a model goes on with.
        overwrite: Replace a store that is already at ``out``.
        progress: Called with the stage (``"order"``, ``"fit"``, ``"encode"``, ``"write"``) and the rows done in it.

    Returns:
        The store, opened, in time order.

    Raises:
        DataError: A file is missing, damaged or empty, or a row is malformed; ``out`` is taken, or
            holds a raw file.
        ConfigError: Options that make no sense together.
        OutputError: It cannot be written.
    """
    options, out = options or PrepareOptions(), real_target(Path(out))
    check_target(out, overwrite=overwrite)
    if extend is not None:
        spec = Encoder.load(extend).spec
        there = (Path(extend) / MANIFEST).is_file()
        options = as_before(options, spec, read_manifest(Path(extend)).provenance if there else {})
        format = format or spec.format
        schema = spec.columns if schema is None and format in ("csv", "parquet") else schema
    data = open_raw(source, format=format, schema=schema, label_threshold=options.label_threshold, seed=options.seed)
    for file in data.source.files:
        # Manifest and quarantine, both UTF-8, name it.
        if file.name.encode("utf-8", "replace").decode() != file.name:
            raise DataError("its name is not UTF-8", file=file, remedy="rename it")
        if file.resolve().is_relative_to(out.resolve()):  # replaced, it would be gone
            raise DataError("lies in the output folder", file=file, remedy="choose another output folder")
    negatives = negative_options(data, options)
    with stage_folder(out) as temporary:
        previous = None if extend is None else Path(extend)
        stage = Passes(data, options, temporary, progress or (lambda _stage, _rows: None), previous)
        encoder = stage.fit()
        writer, rises = stage.encode(encoder, out, overwrite=overwrite)
        splits = stage.splits
        with writer:
            if not rises or (negatives is not None and negatives.per_positive):
                # What was encoded becomes the input of one more pass, which writes the store.
                writer.path = temporary / "encoded"
                encoded = writer.commit()
                writer = stage.writer(encoder, out, overwrite=overwrite)
                with writer:
                    order = None if rises else time_order(encoded)
                    drawn = (order, negatives, data.schema, splits, stage.report)
                    hashed = any(sparse.kind == "hash" for sparse in encoder.spec.sparse)
                    splits = rewrite(encoded, writer, *drawn, is_slice=previous is not None, hashed=hashed)
                    return stage.commit(writer, encoder, negatives, splits)
            return stage.commit(writer, encoder, negatives, splits)


def open_or_prepare(
    source: str | Path,
    cache_dir: str | Path,
    *,
    format: str | None = None,
    schema: Schema | None = None,
    options: PrepareOptions | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Store:
    """Opens a prepared folder, or prepares raw files once into ``cache_dir``.

    The cached store is used again as long as the files' names, sizes and times of change, and all options, are the
    same.

    Raises:
        DataError: As :func:`prepare` and :meth:`Store.open`.
        OutputError: It cannot be written.
    """
    source, options = Path(source), options or PrepareOptions()
    if (source / MANIFEST).is_file():
        return Store.open(source)
    data = open_raw(source, format=format, schema=schema, label_threshold=options.label_threshold, seed=options.seed)
    what = [data.format, data.schema.model_dump(mode="json"), dict(data.groups)]
    key = sha256(json.dumps(what, sort_keys=True).encode())
    key.update(options.model_dump_json(exclude={"threads"}).encode())
    for file in (*data.source.files, *data.beside):
        status = file.stat()
        place = f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        key.update(place.encode("utf-8", "surrogateescape"))
    target = Path(cache_dir) / f"{source.stem}-{key.hexdigest()[:16]}"
    if (target / MANIFEST).is_file():
        return Store.open(target)
    try:
        return prepare(source, target, format=format, schema=schema, options=options, progress=progress)
    except SlipstreamError:
        # Another training may have prepared the same meanwhile; its store is as good as ours.
        if not (target / MANIFEST).is_file():
            raise
        return Store.open(target)
