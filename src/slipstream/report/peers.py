"""README's first table: what ours gains over each peer, from the records of ``make bench-peers``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slipstream.report.record import Record

PREFIX = "peers_"
"""Of the names of their records and files."""
MEASURES = {
    "samples_per_second": "samples/s",
    "samples_per_second_bf16": "samples/s, ours in bf16",
    "seconds_to_auc_within": "time to within 0.001 of the best AUC of plain torch",
    "seconds_to_its_auc": "time to within 0.001 of its own AUC",
    "seconds_to_ndcg": "time to NDCG@20",
    "peak_rss": "peak memory",
}
"""Columns, by the measure of a ratio's key ``<measure>/<peer>``; other ratios stay in the records."""
WITH_TARGET = ("seconds_to_auc_within", "seconds_to_ndcg")
"""Measures with one target for all, which a peer may miss."""
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
    for file, record in records:
        if not record.name.startswith(PREFIX):
            continue
        for measure, title in MEASURES.items():
            cells = {
                peer: f"{ratio:.2f}x"
                for key, ratio in record.ratios.items()
                for kind, _, peer in [key.partition("/")]
                if kind == measure and peer in PEERS
            }
            if cells and measure in WITH_TARGET:
                cells = _ended_with(record) | cells
            if cells:
                data = record.dataset.partition(",")[0].replace("_", " ") if measure.startswith("seconds_to") else ""
                head = f"[{title}{', ' + data if data else ''}](benchmarks/results/{file.name})"
                columns[head] = cells
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
        " the same grid; above 1x ours is faster, or smaller. Time to NDCG@20: until that of RecBole's BPR. In"
        " brackets: what a system ended with that did not get there. Times to the AUC without a tolerance are in the"
        " records."
        "\n\n"
    )


def _ended_with(record: Record) -> dict[str, str]:
    """Cells of the peers, for those that did not get to the target."""
    return {
        row["system"]: f"({row[measure]:.4f})"
        for row in record.rows
        for measure in ("AUC", "NDCG@20")
        if row["system"] in PEERS and row.get(measure) is not None
    }
