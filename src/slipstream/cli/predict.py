"""``slipstream predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import output
from slipstream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt

    from slipstream.data.store import Store

BATCH = 8192


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder, as given to `slipstream train --out`.")],
    data: Annotated[Path, typer.Argument(help="Prepared data set, or raw files in the format of the training data.")],
    out: Annotated[Path, typer.Argument(help="File for the predictions: .parquet or .csv.")],
    encoder: Annotated[
        Path | None,
        typer.Option(help="For raw files: the prepared data set the run was trained on; else the run's own."),
    ] = None,
    start: Annotated[int, typer.Option(help="First sample, of a prepared data set.")] = 0,
    stop: Annotated[int | None, typer.Option(help="First sample no longer predicted, of a prepared data set.")] = None,
) -> None:
    """Write the probability of the positive label for every sample, in the order of the data."""
    if out.suffix not in (".parquet", ".csv"):
        remedy = "give the file one of these endings"
        raise ConfigError(f"{out}: the predictions go to a .parquet or a .csv file", remedy=remedy)
    import numpy as np
    import polars as pl

    from slipstream import training
    from slipstream.data.atomic import atomic_file
    from slipstream.data.manifest import MANIFEST
    from slipstream.data.store import Store
    from slipstream.errors import OutputError

    if (data / MANIFEST).is_file():
        _check_stays(out, run, Store.open(data))
        probabilities = training.predict(run, data, start=start, stop=stop)
    elif start or stop is not None:
        raise ConfigError("--start and --stop belong to prepared data sets", remedy="prepare the files first")
    else:
        probabilities = predict_raw(run, data, encoder, out)
    samples = np.arange(start, start + len(probabilities), dtype=np.int64)
    frame = pl.DataFrame({"sample": samples, "probability": probabilities})
    with atomic_file(out) as partial:
        try:
            if out.suffix == ".csv":
                frame.write_csv(partial)
            else:
                frame.write_parquet(partial)
        except pl.exceptions.PolarsError as error:  # a full disk, of parquet
            raise OutputError(out, error) from error
    output.say(f"{len(probabilities):,} predictions: {out}")


def _check_stays(out: Path, run: Path, prepared: Store, files: Iterable[Path] = ()) -> None:
    """Whether the predictions are not to take the place of what they are made from.

    Args:
        out: Where they go.
        run: The run folder.
        prepared: The data set, or the one whose encoder is used.
        files: Raw files.

    Raises:
        ConfigError: ``out`` is a file of these.
    """
    from slipstream.data.manifest import MANIFEST
    from slipstream.training.run_folder import FILES

    own = (prepared.path / name for name in (MANIFEST, *prepared.manifest.files))
    read = [*files, *own, *(run / name for name in FILES)]
    if out.exists() and any(file.exists() and out.samefile(file) for file in read):
        raise ConfigError(f"{out} is a file that the predictions are made from", remedy="choose another file")


def predict_raw(run: Path, source: Path, prepared: Path | None, out: Path) -> npt.NDArray[np.float32]:
    """Probabilities for raw files, labelled or not.

    Args:
        run: Run folder.
        source: The files.
        prepared: The data set whose encoder to use; None: the one the run was trained on.
        out: Where they will be written.

    Returns:
        float32, one for each row of the files.

    Raises:
        DataError: A row is malformed, the run was not trained on that data set, or its scores are not numbers.
        ConfigError: ``out`` is one of the files, or belongs to the run or the data set.
    """
    import numpy as np
    import torch

    from slipstream.data.encoder import Encoder
    from slipstream.data.formats import open_raw
    from slipstream.data.prepare import encode_raw
    from slipstream.data.store import Store
    from slipstream.evaluation.metrics import probabilities
    from slipstream.training.inference import check_logits, load_run
    from slipstream.training.predicting import autocast, known_inputs
    from slipstream.training.run import open_data

    # A run that was trained on raw files finds what it prepared in its cache, or prepares it again.
    model, wanted, config = load_run(run)
    store = Store.open(prepared) if prepared is not None else open_data(config)
    wanted.check(store)
    encoder = Encoder.load(store.path)
    spec = encoder.spec
    columns = spec.columns if spec.format in ("csv", "parquet") else None
    _check_stays(out, run, store, open_raw(source, format=spec.format, schema=columns).source.files)
    parts = [np.empty(0, dtype=np.float32)]
    rows = [feature.num_rows for feature in wanted.features]
    with torch.inference_mode(), autocast(config.bf16):
        for batch in encode_raw(source, encoder, BATCH, labels=False):
            logits = model(known_inputs(batch.inputs, rows)).float().numpy()
            check_logits(logits, int(batch.index[0]), run)
            parts.append(probabilities(logits).astype(np.float32))
    return np.concatenate(parts)
