import json

from typer.testing import CliRunner

from slipstream.cli.app import app
from slipstream.data.synthetic import SyntheticConfig, generate
from slipstream.errors import ConfigError


def test_the_learning_curve_is_printed_and_written(tmp_path):
    generate(tmp_path / "data", SyntheticConfig(num_samples=4000, cardinalities=(50, 20), num_dense=2))
    out = tmp_path / "profile.json"
    arguments = ["inspect", tmp_path / "data", "--learning-curve", "--model", "deepfm", "--json", out]
    arguments += ["--set", "model.embedding_dim=4", "--set", "batch_size=128", "--set", "threads=1"]
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "12.5%" in done.output and "AUC lost" in done.output
    written = json.loads(out.read_text())
    assert len(written["learning_curve"]["measured"]) == 4
    assert "overall" in written, "the profile of the accesses is still in it"
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "data"), "--model", "deepfm"])
    assert isinstance(done.exception, ConfigError)
