"""What people write by hand: schema files, configurations, ``--set``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.malformed.corpus import FIXTURES, Case

_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
"""A billion laughs: 600 bytes that stand for 9^12 values."""

DOCUMENTS: dict[str, bytes] = {
    "not YAML": b"a: [1, 2\n",
    "tabs": b"a:\n\tb: 1\n",
    "invalid UTF-8": b"a: \xff\xfe\n",
    "UTF-16": "a: 1\n".encode("utf-16"),
    "NUL byte": b"a: \0\n",
    "NUL escaped": b'label: "a\\0b"\ndata: "a\\0b"\n',
    "half a surrogate": b'label: "\\ud800"\ndata: "\\ud800"\n',
    "control characters": b"a: \x07\x1b[31m\n",
    "a list": b"- 1\n- 2\n",
    "a number": b"42\n",
    "a text": b"hello\n",
    "two documents": b"label: x\n---\nlabel: y\n",
    "a Python tag": b"label: !!python/object/apply:os.system ['true']\n",
    "a Python name tag": b"label: !!python/name:os.system\n",
    "a local tag": b"label: !mine 3\n",
    "a tag with a wrong value": b'label: !!float ""\n',
    "an int tag with a wrong value": b'label: !!int ""\n',
    "a bool tag with a wrong value": b"label: !!bool perhaps\n",
    "a timestamp tag with a wrong value": b"label: !!timestamp never\n",
    "a billion laughs": _LAUGHS.encode(),
    "an anchor that holds itself": b"a: &a [*a]\n",
    "an anchor that is not there": b"a: *b\n",
    "100,000 brackets": b"a: " + b"[" * 100_000,
    "10,000 closed brackets": b"a: " + b"[" * 10_000 + b"]" * 10_000,
    "10,000 nested mappings": b"".join(b" " * i + b"a:\n" for i in range(2000)),
    "a key twice": b"label: x\nlabel: y\nseed: 1\nseed: 2\n",
    "a key that is a list": b"[1, 2]: 3\n",
    "a key that is a mapping": b"{a: 1}: 3\n",
    "a key that is a number": b"1: 3\n",
    "a key that is null": b"null: 3\n",
    "a date that is none": b"label: 2020-13-45\nseed: 2020-13-45\n",
    "an integer of 5000 digits": b"label: " + b"9" * 5000 + b"\nseed: " + b"9" * 5000 + b"\n",
    "a hexadecimal number without digits": b"label: 0x_\nseed: 0b_\n",
    "a merge of a text": b"<<: text\n",
    "a file of 3 MB": b"# " + b"x" * (3 << 20) + b"\nlabel: y\n",
    "an unknown setting": b"colour: red\n",
    "JSON with a trailing comma and a tag": b'{"label": !!set {a},}\n',
}

SCHEMAS: dict[str, str] = {
    "empty": "",
    "no feature": "label: label\n",
    "a column in two roles": "label: label\ncategorical: [user, user]\n",
    "label and feature": "label: user\ncategorical: [user]\n",
    "categorical is a text": "label: label\ncategorical: user\n",
    "categorical is a number": "label: label\ncategorical: 3\n",
    "a column that is a number": "label: label\ncategorical: [3]\n",
    "a column that is not there": "label: label\ncategorical: [usr]\n",
    "separator of two characters": "label: label\nmulti_hot: [{name: user, separator: '||'}]\n",
    "separator that is empty": "label: label\nmulti_hot: [{name: user, separator: ''}]\n",
    "separator that is a line break": 'label: label\nmulti_hot: [{name: user, separator: "\\n"}]\n',
    "multi-hot without a name": "label: label\nmulti_hot: [{separator: '|'}]\n",
    "multi-hot with an empty name": "label: label\nmulti_hot: [{name: ''}]\n",
    "calendar without time": "label: label\ncategorical: [user]\ncalendar: [hour]\n",
    "unknown calendar": "label: label\ntime: time\ncategorical: [user]\ncalendar: [century]\n",
    "hour twice": "label: label\ntime: time\ncategorical: [user]\ncalendar: [hour, hour]\n",
    "user that is no feature": "label: label\ncategorical: [item]\nuser: user\n",
    "threshold that is nan": "label: label\nlabel_threshold: .nan\ncategorical: [user]\n",
    "threshold that is a text": "label: label\nlabel_threshold: high\ncategorical: [user]\n",
    "threshold without a label": "label_threshold: 3\ncategorical: [user]\n",
    "label is a list": "label: [a, b]\ncategorical: [user]\n",
    "numbers as categories and texts as numbers": "label: label\ndense: [user]\n",
    "dates as numbers": "label: time\ncategorical: [user]\ndense: [item]\n",
}

SETTINGS: dict[str, tuple[str, str]] = {
    name: (text, text.partition("=")[0].rpartition(".")[2] or "=")
    for name, text in {
        "no equals sign": "optimizer.lr",
        "no name": "=1",
        "unknown": "colour=red",
        "unknown within": "optimizer.colour=red",
        "class": "__class__=1",
        "not YAML": "seed=[",
        "tag": "seed=!!python/name:os.system",
        "rate of zero": "optimizer.lr=0",
        "negative rate": "optimizer.lr=-1",
        "rate that is nan": "optimizer.lr=.nan",
        "rate that is infinite": "optimizer.lr=.inf",
        "rate that is huge": "optimizer.lr=1e999",
        "rate that is no float32": "optimizer.lr=1e300",
        "decay that is no float32": "optimizer.weight_decay=1e300",
        "rate of a scout that is no float32": "policy={name: importance, lr: 1e300}",
        "rate that is a text": "optimizer.lr=fast",
        "rate that is a list": "optimizer.lr=[1]",
        "betas of one": "optimizer.betas=[0.9]",
        "betas out of range": "optimizer.betas=[0.9, 1.0]",
        "unknown optimizer": "optimizer.name=lion",
        "decay without end": "optimizer.weight_decay=.inf",
        "batch of none": "batch_size=0",
        "batch of -1": "batch_size=-1",
        "batch of 10^30": "batch_size=1" + "0" * 30,
        "batch of half": "batch_size=0.5",
        "epochs of none": "epochs=0",
        "epochs of 10^30": "epochs=1" + "0" * 30,
        "chunk of 10^30": "chunk_size=1" + "0" * 30,
        "samples of one": "max_samples=1",
        "samples of 10^30": "max_samples=-1" + "0" * 30,
        "threads of none": "threads=0",
        "threads of a million": "threads=1000000",
        "threads of 10^30": "threads=1" + "0" * 30,
        "seed of -1": "seed=-1",
        "seed of 2^40": "seed=1099511627776",
        "seed that is a text": "seed=lucky",
        "holdout of one": "holdout=1",
        "holdout of none": "holdout=0",
        "log every none": "log_every=0",
        "log every 10^30": "log_every=1" + "0" * 30,
        "warm-up of 10^30": "schedule.warmup_steps=1" + "0" * 30,
        "unknown mode": "mode=oracle",
        "unknown engine": "engine=jet",
        "unknown model": "model.name=gpt",
        "model as a list": "model=[dlrm]",
        "rows of no element": "model={name: dlrm, embedding_dim: 0}",
        "rows of 10^9 elements": "model={name: dlrm, embedding_dim: 1000000000}",
        "layer of none": "model={name: dlrm, top: [0]}",
        "layer of -5": "model={name: dlrm, bottom: [-5]}",
        "layer of 10^12": "model={name: dlrm, top: [1000000000000]}",
        "a thousand layers": f"model={{name: dlrm, top: {[4] * 1000}}}",
        "layers that are a text": "model={name: dlrm, top: wide}",
        "init without width": "model={name: dlrm, init: normal, init_std: .nan}",
        "unknown policy": "policy.name=magic",
        "budget of none": "policy={name: random, budget: 0}",
        "budget of two": "policy={name: random, budget: 2}",
        "budget that is nan": "policy={name: random, budget: .nan}",
        "budget of none, twice nested": "policy={name: combine, inputs: {name: random, budget: -1}}",
        "setting of a text": "policy.name.x.y=1",
        "score range turned round": "score_to=0",
        "score range outside holdout": "score_from=5",
        "format that is none": "format=excel",
        "prepare option": "prepare.min_frequency=0",
        "fit share of none": "prepare.fit_share=0",
        "out with NUL": 'out="a\\0b"',
        "data with NUL": 'data="a\\0b"',
        "data that is a number": "data=3",
    }.items()
}


def cases() -> Iterator[Case]:
    """Every document as schema and as both kinds of configuration, then what a schema, a setting, a flag may say."""
    for name, data in DOCUMENTS.items():
        yield _schema(name, data)
        yield _config("train", name, data)
        if len(data) < 1000:
            yield _config("prepare", name, data)
    for name, text in SCHEMAS.items():
        yield _schema(name, text.encode())
    for name, (text, says) in SETTINGS.items():
        yield Case(f"--set/{name}", lambda folder, t=text: [*_train(folder), "--set", t], (says,))
    for text, says in (
        ("seed.x=1", "seed"),
        ("data=" + "x" * 5000, "xxx"),
        ("popularity_feature=nobody", "nobody"),
        ("columns=nowhere.yaml", "nowhere.yaml"),
        ("..=1", "''"),
    ):
        yield Case(f"--set/{text[:30]}", lambda folder, t=text: [*_train(folder), "--set", t], (says,))
    for name, flags in _flags().items():
        yield Case(f"flags/{name}", lambda folder, f=flags: [*_train(folder), *f], (flags[0].lstrip("-")[:4],))
    for kind in ("folder", "missing", "pipe"):
        yield Case(f"config/{kind}", lambda folder, k=kind: [*_train(folder), "--config", _odd(folder, k)], ("odd",))
        yield Case(f"schema/{kind}", lambda folder, k=kind: [*_prepare(folder), "--schema", _odd(folder, k)], ("odd",))


def _flags() -> dict[str, tuple[str, ...]]:
    return {
        "batch that is a text": ("--batch-size", "big"),
        "batch of 10^30": ("--batch-size", "1" + "0" * 30),
        "rate that is nan": ("--lr", "nan"),
        "negative rate": ("--lr", "-0.1"),
        "budget that is a text": ("--budget", "some"),
        "budget that is infinite": ("--budget", "inf", "--policy", "random"),
        "unknown model": ("--model", "gpt"),
        "unknown policy": ("--policy", "magic"),
        "unknown optimizer": ("--optimizer", "lion"),
        "unknown system": ("--system", "skynet"),
        "unknown mode": ("--mode", "oracle"),
        "epochs of none": ("--epochs", "0"),
        "seed of -1": ("--seed", "-1"),
        "threads of -1": ("--threads", "-1"),
    }


def _train(folder: Path) -> list[str]:
    return ["train", str(FIXTURES / "store_v1"), "--quiet", "--out", str(folder / "out")]


def _prepare(folder: Path) -> list[str]:
    return ["prepare", str(FIXTURES / "clicks.csv"), str(folder / "out")]


def _config(command: str, name: str, data: bytes) -> Case:
    def build(folder: Path) -> list[str]:
        (folder / "config.yaml").write_bytes(data)
        return [*(_train if command == "train" else _prepare)(folder), "--config", str(folder / "config.yaml")]

    return Case(f"{command} config/{name}", build, ("config.yaml",))


def _schema(name: str, data: bytes) -> Case:
    def build(folder: Path) -> list[str]:
        (folder / "schema.yaml").write_bytes(data)
        return [*_prepare(folder), "--schema", str(folder / "schema.yaml")]

    return Case(f"schema/{name}", build)


def _odd(folder: Path, kind: str) -> str:
    import os

    path = folder / "odd.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    return str(path)
