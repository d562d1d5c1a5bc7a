from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.docs.blocks import blocks, provide, run_shell
from torch import nn

from slipstream.data.batch import Batch, Inputs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


class MyModel(nn.Module):
    """What README leaves to the reader: any module with embeddings, here two of them and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(50, 8)
        self.item = nn.Embedding(30, 8)
        self.top = nn.Linear(16, 1)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        vectors = [self.user(inputs.ids[:, 0]), self.item(inputs.ids[:, 1])]
        return self.top(torch.cat(vectors, dim=1)).squeeze(1)


def _loader() -> list[Batch]:
    batches = []
    for start in range(0, 640, 64):
        ids = torch.stack([torch.randint(0, 50, (64,)), torch.randint(0, 30, (64,))], dim=1).to(torch.int32)
        labels = (ids.sum(dim=1) % 2).to(torch.float32)
        batches.append(
            Batch(Inputs(torch.empty(64, 0), ids, ()), labels, torch.arange(start, start + 64), torch.ones(64))
        )
    return batches


def test_there_is_an_example() -> None:
    assert len(BLOCKS) == 1


@pytest.mark.parametrize("block", BLOCKS)
def test_the_example_runs_as_written(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names = {"MyModel": MyModel, "loader": _loader(), "criterion": nn.BCEWithLogitsLoss(reduction="none")}
    exec(compile(block, "README.md", "exec"), names)
    assert "policy psse: trained 640 of 640 inputs" in capsys.readouterr().out
    assert not torch.equal(names["model"].user.weight, names["MyModel"]().user.weight)


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:|#)([^)]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_commands_and_options_in_the_readme_exist() -> None:
    import typer

    from slipstream.cli.app import app

    group = typer.main.get_command(app)
    used = re.findall(r"^ *slipstream (\w+)(.*?)(?:#.*)?$", README, flags=re.MULTILINE)
    assert len(used) >= 8
    for name, rest in used:
        command = group.commands[name]
        if name == "bench":
            command = command.commands[rest.split()[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= options, name


@pytest.mark.filterwarnings("ignore")
def test_the_command_line_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    provide(tmp_path)
    (shown,) = [block for block in blocks(ROOT / "README.md") if block.language == "bash" and block.runs]
    run_shell(shown.text, tmp_path)


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"`make ([\w-]+)`", README))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    benches = re.search(r"^BENCHES := (.*)$", makefile, flags=re.MULTILINE)
    assert benches is not None
    known = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE)) | {
        f"bench-{name}" for name in benches[1].split()
    }
    assert targets <= known
