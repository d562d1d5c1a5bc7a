import json

from typer.testing import CliRunner

from slipstream.cli.app import app
from slipstream.data.synthetic import SyntheticConfig, generate


def test_the_profile_is_printed_and_written(tmp_path):
    generate(tmp_path / "data", SyntheticConfig(num_samples=2000, cardinalities=(50, 20), num_dense=2))
    out = tmp_path / "profile.json"
    arguments = ["profile", tmp_path / "data", "--batch-size", "128", "--steps", "2", "--threads", "1", "--json", out]
    arguments += [
        "--model",
        "dlrm",
        "--set",
        "model.embedding_dim=4",
        "--set",
        "model.bottom=[8]",
        "--set",
        "model.top=[8]",
    ]
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    for word in ("row update", "dense backward", "random", "recommended:"):
        assert word in done.output
    assert json.loads(out.read_text())["batch_size"] == 128
