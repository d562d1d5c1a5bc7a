"""The passes over raw files: order, fit, encode."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from slipstream._version import __version__
from slipstream.data.chunk import Decoded, Rules, decode
from slipstream.data.encoder import ENCODER, Encoder, vocabulary_file
from slipstream.data.fitting import Fitter
from slipstream.data.formats import RawData
from slipstream.data.negatives import NegativeOptions
from slipstream.data.options import PrepareOptions
from slipstream.data.pairs import PairSource
from slipstream.data.pipeline import in_order
from slipstream.data.quarantine import Quarantine
from slipstream.data.sources import Task
from slipstream.data.store import Store
from slipstream.data.writer import StoreWriter
from slipstream.errors import DataError

Result = TypeVar("Result")


def decoder(data: RawData, rules: Rules) -> Callable[[Task], Decoded]:
    """Makes the function that reads and checks one chunk."""

    def work(task: Task) -> Decoded:
        chunk = task()
        return decode(data.derive(chunk) if data.derive is not None else chunk, rules)

    return work


class Passes:
    """The passes over the raw files, with temporary files in ``folder``."""

    def __init__(
        self,
        data: RawData,
        options: PrepareOptions,
        folder: Path,
        progress: Callable[[str, int], None],
        previous: Path | None = None,
    ) -> None:
        self.data, self.options, self.folder, self.report = data, options, folder, progress
        self.previous = previous
        self.quarantine = folder / "quarantine.tsv"
        self.bad_rows = 0
        self.splits: dict[str, tuple[int, int]] = {}
        """Ranges of the named groups among the encoded rows."""

    def _decoded(self, stage: str, rules: Rules) -> Iterator[Decoded]:
        for rows, _ in self._run(stage, decoder(self.data, rules), lambda _rows: None):
            yield rows

    def _run(
        self, stage: str, decode: Callable[[Task], Decoded], then: Callable[[Decoded], Result]
    ) -> Iterator[tuple[Decoded, Result]]:
        """Decodes all chunks on the threads, and there does ``then`` with each."""

        def work(task: Task) -> tuple[Decoded, Result]:
            rows = decode(task)
            return rows, then(rows)

        done = 0
        for rows, result in in_order(self.data.source.tasks(self.data.columns), work, self.options.threads):
            if rows.bad and self.options.on_bad_row == "stop":
                raise rows.bad[0].error()
            yield rows, result
            done += len(rows)
            self.report(stage, done)
        if not done:
            remedy = "check that the format is the right one"
            raise DataError("holds no usable row", file=self.data.source.files[0], remedy=remedy)

    def _fitted_rows(self, rules: Rules) -> npt.NDArray[np.bool_] | None:
        """Which rows are among the first share in time; None: all."""
        if self.options.fit_share == 1:
            return None
        times: list[npt.NDArray[np.int64]] = []
        for rows in self._decoded("order", rules):
            times.append(np.zeros(len(rows), dtype=np.int64) if rows.time is None else rows.time)
        order = np.argsort(np.concatenate(times), kind="stable")
        fitted = np.zeros(order.size, dtype=np.bool_)
        fitted[order[: max(1, int(order.size * self.options.fit_share))]] = True
        return fitted

    def fit(self) -> Encoder:
        """Fits the encoder; the vocabularies are in the folder."""
        options = self.options
        fitter = Fitter(
            self.data,
            self.folder,
            min_frequency=options.min_frequency,
            hash_rows=options.hash_rows,
            dense=options.dense or self.data.dense,
            nan_is_missing=options.nan == "missing",
            previous=self.previous,
        )
        with fitter:
            if fitter.needed:
                rules = Rules(self.data.schema, self.data.binary, options.nan == "missing")
                fitted, done = self._fitted_rows(rules), 0
                for rows in self._decoded("fit", rules):
                    fitter.add(rows, None if fitted is None else fitted[done : done + len(rows)])
                    done += len(rows)
            return fitter.finish()

    def writer(self, encoder: Encoder, path: Path, *, overwrite: bool) -> StoreWriter:
        """A writer for a store of the encoder's features."""
        schema = self.data.schema
        return StoreWriter(
            path,
            encoder.features,
            dense=schema.dense,
            label_dtype="uint8" if encoder.spec.binary or schema.label is None else "float32",
            has_time=schema.time is not None,
            overwrite=overwrite,
        )

    def encode(self, encoder: Encoder, path: Path, *, overwrite: bool) -> tuple[StoreWriter, bool]:
        """Encodes all rows; returns the writer, not yet committed, and whether the time of the rows rises."""
        rises, last, raw = True, -(2**62), 0
        ends, kept = dict(self.data.groups), dict[str, int]()
        writer = self.writer(encoder, path, overwrite=overwrite)
        with ExitStack() as on_error, Quarantine(self.quarantine) as quarantine:
            on_error.callback(writer.discard)
            for rows, encoded in self._run("encode", decoder(self.data, encoder.rules), encoder.encode):
                quarantine.add(rows.bad)
                for name in [name for name, end in ends.items() if end <= raw + len(rows) + len(rows.bad)]:
                    kept[name] = writer.num_samples + int((rows.rows < ends.pop(name) - raw).sum())
                raw += len(rows) + len(rows.bad)
                if not len(rows):
                    continue
                writer.append(encoded.ids, encoded.dense, encoded.labels, encoded.time, encoded.bags)
                if encoded.time is not None:
                    rises = rises and last <= encoded.time[0] and bool((np.diff(encoded.time) >= 0).all())
                    last = int(encoded.time[-1])
            self.bad_rows = quarantine.count
            self.splits = dict(zip(kept, pairwise([0, *kept.values()]), strict=True))
            on_error.pop_all()
        return writer, rises

    def commit(
        self,
        writer: StoreWriter,
        encoder: Encoder,
        negatives: NegativeOptions | None,
        splits: dict[str, tuple[int, int]],
    ) -> Store:
        """Adds encoder, vocabularies and quarantine to what was written, and finishes the store."""
        for sparse in encoder.spec.sparse:
            if sparse.kind == "vocabulary":
                name = vocabulary_file(sparse.name)
                writer.add_file(name, lambda path, n=name: shutil.move(self.folder / n, path))
        writer.add_file(ENCODER, lambda path: encoder.save(path.parent))
        if self.bad_rows:
            writer.add_file("quarantine.tsv", lambda path: shutil.move(self.quarantine, path))
        return writer.commit(self.provenance(encoder, negatives, splits))

    def provenance(
        self, encoder: Encoder, negatives: NegativeOptions | None, splits: dict[str, tuple[int, int]]
    ) -> dict[str, JsonValue]:
        """What the manifest says of where the data came from."""
        return {
            "format": self.data.format,
            "files": {file.name: file.stat().st_size for file in self.data.source.files},
            "options": self.options.model_dump(mode="json", exclude={"threads"}),
            "fitted_rows": encoder.spec.fitted_rows,
            "bad_rows": self.bad_rows,
            "negatives": None if negatives is None else negatives.model_dump(mode="json"),
            "splits": {name: list(ends) for name, ends in splits.items()},
            "split": source.split if isinstance(source := self.data.source, PairSource) else None,
            "user": self.data.schema.user,
            "item": self.data.schema.item,
            "slipstream": __version__,
            "prepared": datetime.now(UTC).isoformat(timespec="seconds"),
        }
