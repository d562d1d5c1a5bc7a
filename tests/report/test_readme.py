from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slipstream.errors import ConfigError, DataError
from slipstream.report.readme import BEGIN, END, main, render, rewrite
from slipstream.report.record import Record


def _save(folder: Path, name: str, **fields: object) -> None:
    Record(name=name, **fields).save(folder / f"{name}.json")  # type: ignore[arg-type]


def test_every_ratio_is_a_line_and_quality_stands_beside_the_first(tmp_path: Path) -> None:
    _save(
        tmp_path, "step", ratios={"torch": 1.456, "bf16": 3.0}, quality={"auc": 0.79123}, conditions={"batch_size": 8}
    )
    lines = render(tmp_path).splitlines()
    assert lines[2] == "| [step](benchmarks/results/step.json) | torch | 1.46x | auc 0.7912 | batch size 8 |"
    assert lines[3].startswith("| [step](benchmarks/results/step.json) | bf16 | 3.00x |")


def test_peers_come_first_in_a_table_of_their_own(tmp_path: Path) -> None:
    _save(tmp_path, "step", ratios={"torch": 1.5})
    _save(
        tmp_path,
        "peers_throughput",
        ratios={"samples_per_second/torchrec": 1.304, "samples_per_second_dim64/torchrec": 2},
    )
    _save(
        tmp_path,
        "peers_time_to_quality_globo",
        dataset="globo, 10 samples",
        ratios={"seconds_to_auc/dlrm_reference": 4.0},
        rows=[{"system": "torchrec", "measure": "AUC not reached", "AUC": 0.71234}],
    )
    lines = render(tmp_path).splitlines()
    samples = "[samples/s](benchmarks/results/peers_throughput.json)"
    time = "[time to AUC, globo](benchmarks/results/peers_time_to_quality_globo.json)"
    assert lines[0] == f"| ours against | {samples} | {time} |"
    assert lines[2] == "| DLRM on plain torch, SGD |  | 4.00x |"
    assert lines[3] == "| TorchRec + FBGEMM | 1.30x | (0.7123) |"
    assert any(line.startswith("| [step]") for line in lines)


def test_quick_records_are_not_quoted(tmp_path: Path) -> None:
    _save(tmp_path, "step", ratios={"torch": 1.5}, conditions={"quick": True})
    assert "No figures yet" in render(tmp_path)


def test_what_is_no_record_stops(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.json"):
        render(tmp_path)


def test_a_kept_result_of_a_training_is_a_line(make_run: Callable[..., Path], tmp_path: Path) -> None:
    machine = {"processor": "a processor", "cores": 2, "memory_gib": 4, "system": "Linux"}
    run = make_run("globo", machine=machine, samples_per_second=123456.7, model="dlrm")
    (tmp_path / "globo_prequential.json").write_bytes((run / "result.json").read_bytes())
    line = render(tmp_path).splitlines()[2]
    assert line.startswith(
        "| [globo prequential](benchmarks/results/globo_prequential.json) | samples/s | 123,457 | auc 0.77"
    )
    assert "model dlrm, policy none" in line


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nformer\n{END}\nafter\n", encoding="utf-8")
    _save(tmp_path / "results", "gates", ratios={"cold": 5.0})
    main([str(readme), str(tmp_path / "results")])
    once = readme.read_text(encoding="utf-8")
    assert once.startswith(f"before\n{BEGIN}\n| ") and once.endswith(f"{END}\nafter\n")
    assert "former" not in once and "5.00x" in once
    main([str(readme), str(tmp_path / "results")])
    assert readme.read_text(encoding="utf-8") == once


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_missing_or_repeated_marks_are_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="marks"):
        rewrite(text, "")
