"""New raw files, encoded with a fitted encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.data.chunk import Rules
from slipstream.data.encoder import Encoder
from slipstream.data.formats import open_raw
from slipstream.data.passes import decoder
from slipstream.data.pipeline import in_order


def encode_raw(
    source: str | Path,
    encoder: Encoder,
    batch_size: int,
    *,
    labels: bool = True,
    on_bad_row: Literal["stop", "drop"] = "stop",
) -> Iterator[Batch]:
    """Encodes new raw files with a fitted encoder, for prediction or evaluation, in the order of the file.

    Args:
        source: A file or folder in the format that the encoder was fitted on.
        encoder: ``Encoder.load(store_folder)``.
        batch_size: Samples a batch.
        labels: Whether the files have labels; without them all labels are 1.
        on_bad_row: stop: raise; drop: leave malformed rows out. ``index`` counts the rows handed out.

    Raises:
        DataError: A file is missing or damaged, or a row is malformed.
    """
    spec = encoder.spec
    generic = spec.format in ("csv", "parquet")
    data = open_raw(source, format=spec.format, schema=spec.columns if generic else None).in_file_order()
    data = data if labels else data.unlabelled()
    rules = Rules(spec.columns if labels else data.schema, spec.binary, spec.nan_is_missing)
    pending: list[Batch] = []
    count = done = 0
    for rows in in_order(data.source.tasks(data.columns), decoder(data, rules), 2):
        if rows.bad and on_bad_row == "stop":
            raise rows.bad[0].error("correct the row, or take it out")
        if not len(rows):
            continue
        encoded = encoder.encode(rows)
        batch = Batch(
            Inputs(
                torch.from_numpy(encoded.dense),
                torch.from_numpy(encoded.ids),
                tuple(Bag(torch.from_numpy(values), torch.from_numpy(offsets)) for values, offsets in encoded.bags),
            ),
            torch.from_numpy(encoded.labels),
            torch.arange(done, done + len(rows)),
            torch.ones(len(rows)),
            None if encoded.time is None else torch.from_numpy(encoded.time),
        )
        done += len(rows)
        pending.append(batch)
        count += len(rows)
        if count >= batch_size:
            whole = Batch.concat(pending)
            while len(whole) >= batch_size:
                first, whole = whole.split(batch_size)
                yield first
            pending, count = [whole], len(whole)
    if count:
        yield Batch.concat(pending)
