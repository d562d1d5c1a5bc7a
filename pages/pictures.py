"""The pictures of the pages, drawn from real trainings on the bundled MovieTweetings; about a minute."""

from __future__ import annotations

import re
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from tests.browser import browser

from slipstream.data.prepare import prepare
from slipstream.data.store import Store
from slipstream.documents import read_settings
from slipstream.models import build_model
from slipstream.policies import Skipper, build_policy
from slipstream.report import plots
from slipstream.report.log import read_log
from slipstream.report.page import stylesheet
from slipstream.report.run_page import run_page
from slipstream.report.runs import open_run
from slipstream.training import TrainConfig, train

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
SATURATION = {"name": "saturation", "budget": 0.5, "warmup_steps": 100, "every": 50}
IMPORTANCE = {"name": "importance", "budget": 0.5, "warmup_samples": 4096}


def draw() -> None:
    """Draw them all."""
    with tempfile.TemporaryDirectory() as folder:
        store = prepare(ROOT / "examples" / "movietweetings", Path(folder) / "data")
        config = read_settings(ROOT / "examples" / "movietweetings" / "train.yaml")
        gates(store, config, Path(folder) / "run")
        unbiased(store, config)
        drift(store)
        screenshots(Path(folder))


def gates(store: Store, config: dict, run: Path) -> None:
    """Gates over time under saturation: popular rows first have nothing more to learn."""
    settings = {**config, "data": store.path, "policy": SATURATION, "report_points": 40, "out": run, "epochs": 2}
    train(TrainConfig.model_validate(settings), store=store)
    noted = read_log(run / "metrics.jsonl").gates
    series = {
        bucket: ([float(line.samples) for line in noted], [line.open[bucket] for line in noted])
        for bucket in ("head", "torso", "tail")
    }
    save("gates", plots.lines(series, x="samples seen", y="mean chance of a row's update", name="gates over time"))


def unbiased(store: Store, config: dict) -> None:
    """Mean label of the inputs that importance keeps: with weights that of all, without them something else."""
    settings = TrainConfig.model_validate({**config, "data": store.path, "policy": IMPORTANCE})
    model = build_model(settings.model, store.features, store.num_dense)
    skipper = Skipper(model, build_policy(settings.policy), batch_size=256, total_samples=store.num_samples)
    totals, points = np.zeros(5), []
    for batch in store.batches(256):
        totals[:2] += float(batch.labels.sum()), len(batch)
        for kept in skipper.push(batch):
            weights, labels = kept.weights.numpy(), kept.labels.numpy()
            totals[2:] += labels.mean(), (weights * labels).sum() / len(labels), 1
        if len(points) < totals[1] // 2000 and totals[4]:
            points.append((totals[1], totals[0] / totals[1], totals[2] / totals[4], totals[3] / totals[4]))
    seen, *means = np.asarray(points).T.tolist()
    names = ("all inputs", "kept, not weighted", "kept, weighted by 1/p")
    series = {name: (seen, mean) for name, mean in zip(names, means, strict=True)}
    save("unbiased", plots.lines(series, x="inputs decided on", y="mean label so far", name="unbiased skipping"))


def drift(store: Store, slices: int = 10) -> None:
    """Of each slice's most popular movies, the share that were so in the first slice, and the slice before."""
    column = [feature.name for feature in store.one_hot].index("movie")
    cuts = np.linspace(0, store.num_samples, slices + 1).astype(int)
    top = []
    for first, last in pairwise(cuts):
        counts = np.bincount(store.ids[first:last, column].numpy(), minlength=store.one_hot[column].num_rows)
        top.append(set(np.argsort(-counts, kind="stable")[:100].tolist()))
    places = [float(place) for place in range(2, slices + 1)]
    series = {
        "of the slice before": (places, [len(top[i] & top[i - 1]) / 100 for i in range(1, slices)]),
        "of the first slice": (places, [len(top[i] & top[0]) / 100 for i in range(1, slices)]),
    }
    save("drift", plots.lines(series, x="tenth of the data, in time", y="of the top 100 movies", name="drift"))


def screenshots(folder: Path) -> None:
    """The report of the run on a phone, and in dark mode, as Chromium shows them."""
    file = folder / "report.html"
    file.write_text(run_page(open_run(folder / "run"), title="Slipstream: saturation"), encoding="utf-8")
    with browser(folder / "profile") as tab:
        for name, width, height, dark in (("report_phone", 390, 1100, False), ("report_dark", 1100, 1000, True)):
            tab.open(file.as_uri(), width=width, height=height, dark=dark)
            tab.screenshot(IMAGES / f"{name}.png")


def save(name: str, svg: str) -> None:
    """Write a drawing that stands alone, in the reports' colours for light and dark."""
    colours = re.search(r":root \{.*?\} \}\n", stylesheet(), flags=re.DOTALL)
    assert colours is not None
    rules = colours.group().replace(":root", "svg") + "svg { color: var(--ink); } text { font-family: sans-serif; }"
    svg = re.sub(r"(<svg[^>]*>)", rf"\1<style>{rules}</style>", svg, count=1)
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")
