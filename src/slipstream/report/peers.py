"""README's first table: what ours gains over each peer, from the records of ``make bench-peers``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slipstream.report.record import Record

PREFIX = "peers_"
"""Of the names of their records and files."""
MEASURES = {
    "seconds_to_its_auc": "time to its AUC",
    "seconds_to_ndcg": "time to NDCG@20",
    "samples_per_second": "samples/s",
    "samples_per_second_bf16": "samples/s, ours in bf16",
    "peak_rss": "peak memory",
}
"""Columns, by the measure of a ratio's key ``<measure>/<peer>``; other ratios stay in the records."""
PEERS = {
    "dlrm_reference": "DLRM on plain torch, SGD",
    "dlrm_reference_adagrad": "DLRM on plain torch, Adagrad",
    "dlrm_reference_bf16": "DLRM on plain torch, bf16, compiled",
    "torchrec": "TorchRec + FBGEMM",
    "torchrec_bf16": "TorchRec + FBGEMM, bf16, compiled",
    "fuxictr": "FuxiCTR",
    "xdl": "XDL-style",
    "fae": "FAE, in our engine",
    "slipstream_paper": "Slipstream as published, in our engine",
    "recbole_bpr": "RecBole BPR",
    "recbole_neumf": "RecBole NeuMF",
    "implicit_bpr": "implicit BPR",
    "implicit_als": "implicit ALS",
}


def peers_table(records: Sequence[tuple[Path, Record]]) -> str:
    """A line for each peer and a column for each measure, as Markdown; empty without such records.

    Args:
        records: Files and what they hold; those of peers are taken.
    """
    columns: dict[str, dict[str, str]] = {}
    ours = [(file, record) for file, record in records if record.name.startswith(PREFIX)]
    for measure, title in MEASURES.items():
        for file, record in ours:
            cells = {
                peer: f"{ratio:.2f}x"
                for key, ratio in record.ratios.items()
                for kind, _, peer in [key.partition("/")]
                if kind == measure and peer in PEERS
            }
            if not cells:
                continue
            if measure == "seconds_to_ndcg":
                cells = _ended_with(record) | _beside_engine(record, cells)
            data = record.dataset.partition(",")[0].replace("_", " ") if measure.startswith("seconds_to") else ""
            columns[f"[{title}{', ' + data if data else ''}](benchmarks/results/{file.name})"] = cells
    lines = [
        f"| {title} | {' | '.join(cells.get(peer, '') for cells in columns.values())} |\n"
        for peer, title in PEERS.items()
        if any(peer in cells for cells in columns.values())
    ]
    if not lines:
        return ""
    head = f"| ours against | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}\n"
    return (
        head
        + "".join(lines)
        + "\nEach system trained in turn, in an environment of its own, on the same data, for times at a rate tuned on"
        " the same grid; above 1x ours is faster, or smaller. Time to its AUC: until the fastest of ours is within"
        " 0.001 of what that system ends with; to NDCG@20: until that of RecBole's BPR, first with harder negatives,"
        " second with negatives drawn uniformly as RecBole's are; in brackets what a system ended with that did not get"
        " there. Other targets, and the engine and skipping apart, are in the records.\n\n"
    )


def _beside_engine(record: Record, cells: dict[str, str]) -> dict[str, str]:
    """Cells of the ranking peers with what the engine does alone, where the record says so."""
    alone = {peer: record.ratios.get(f"seconds_to_ndcg_engine_alone/{peer}") for peer in cells}
    return {peer: cell + (f", {alone[peer]:.2f}x" if alone[peer] is not None else "") for peer, cell in cells.items()}


def _ended_with(record: Record) -> dict[str, str]:
    """Cells of the ranking peers, for those that did not get to the target."""
    return {
        row["system"]: f"({row['NDCG@20']:.4f})"
        for row in record.rows
        if row["system"] in PEERS and row.get("NDCG@20") is not None
    }
