from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.errors import ConfigError, DataError
from slipstream.report.headlines import HEADLINES, Headline
from slipstream.report.readme import BEGIN, END, main, render, rewrite
from slipstream.report.record import Record

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LINE = Headline("a step", "torch", "step", ("torch", "bf16"), (("auc", "AUC"),))


def _save(folder: Path, name: str, **fields: object) -> None:
    Record(name=name, **fields).save(folder / f"{name}.json")  # type: ignore[arg-type]


def test_a_headline_is_a_line_with_its_ratios_in_order(tmp_path: Path) -> None:
    _save(tmp_path, "step", ratios={"bf16": 3.0, "torch": 1.456}, quality={"auc": 0.79123})
    lines = render(tmp_path, [LINE]).splitlines()
    assert lines[2] == "| a step | torch | [1.46x / 3.00x](benchmarks/results/step.json) | AUC 0.7912 |"


def test_peers_come_first_in_a_table_of_their_own(tmp_path: Path) -> None:
    _save(tmp_path, "step", ratios={"torch": 1.5, "bf16": 3.0}, quality={"auc": 0.7})
    _save(
        tmp_path,
        "peers_throughput",
        ratios={"samples_per_second/torchrec": 1.304, "samples_per_second_dim64/torchrec": 2},
    )
    _save(
        tmp_path,
        "peers_time_to_quality_globo",
        dataset="globo, 10 samples",
        ratios={"seconds_to_auc_within/torchrec": 3.0, "seconds_to_its_auc/torchrec": 2.0},
        rows=[{"system": "torchrec", "AUC": 0.71234}, {"system": "dlrm_reference", "AUC": 0.75}],
    )
    _save(
        tmp_path,
        "peers_ranking_ml1m",
        dataset="ml1m, 10 pairs",
        ratios={"seconds_to_ndcg/recbole_bpr": 4.0, "seconds_to_ndcg_engine_alone/recbole_bpr": 3.0},
        rows=[{"system": "recbole_bpr", "NDCG@20": 0.1}, {"system": "implicit_bpr", "NDCG@20": 0.05}],
    )
    lines = render(tmp_path, [LINE]).splitlines()
    time = "[time to its AUC, globo](benchmarks/results/peers_time_to_quality_globo.json)"
    ndcg = "[time to NDCG@20, ml1m](benchmarks/results/peers_ranking_ml1m.json)"
    samples = "[samples/s](benchmarks/results/peers_throughput.json)"
    assert lines[0] == f"| ours against | {time} | {ndcg} | {samples} |"
    assert lines[2:5] == [
        "| TorchRec + FBGEMM | 2.00x |  | 1.30x |",
        "| RecBole BPR |  | 4.00x, 3.00x |  |",
        "| implicit BPR |  | (0.0500) |  |",
    ]
    assert any(line.startswith("| a step") for line in lines)


def test_quick_records_are_not_quoted(tmp_path: Path) -> None:
    _save(tmp_path, "step", ratios={"torch": 1.5, "bf16": 3.0}, quality={"auc": 0.7}, conditions={"quick": True})
    assert "No figures yet" in render(tmp_path, [LINE])


def test_a_figure_that_its_record_lacks_stops(tmp_path: Path) -> None:
    _save(tmp_path, "step", ratios={"torch": 1.5}, quality={"auc": 0.7})
    with pytest.raises(DataError, match=r"'bf16'.*"):
        render(tmp_path, [LINE])
    _save(tmp_path, "step", ratios={"torch": 1.5}, conditions={"left out": "bf16: this processor has no such products"})
    assert "| [1.50x / –](benchmarks/results/step.json) |  |" in render(tmp_path, [LINE])


def test_what_is_no_record_stops(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.json"):
        render(tmp_path)


def test_readme_says_what_the_kept_records_say() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert rewrite(readme, render(RESULTS)) == readme, "run `make results`"
    assert all((RESULTS / f"{line.record}.json").is_file() for line in HEADLINES)


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nformer\n{END}\nafter\n", encoding="utf-8")
    _save(tmp_path / "results", "gates", ratios={"cold": 5.0, "hot": 2.0})
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
