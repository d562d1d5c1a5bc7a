"""Which figures of the kept records README leads with, in which order and words. The results page shows all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """One line of README's table.

    Attributes:
        what: What was measured.
        against: The peer that the ratios are against.
        record: Name of the record's file, without ``.json``.
        ratios: Keys of the record's ratios, in the order in which ``what`` or ``against`` names them.
        quality: Keys of the record's quality figures, each with the words that stand before it.
    """

    what: str
    against: str
    record: str
    ratios: tuple[str, ...]
    quality: tuple[tuple[str, str], ...] = ()


HEADLINES: tuple[Headline, ...] = (
    Headline(
        "Embedding tables alone: forward, backward, row-wise Adagrad; dim 16 / 64 / 128",
        "FBGEMM, CPU",
        "kernels",
        ("fbgemm_dim16", "fbgemm_dim64", "fbgemm_dim128"),
        (("fbgemm_dim16_largest_weight_difference", "largest difference of a weight"),),
    ),
    Headline(
        "The same on a processor without AVX-512; dim 16 / 64 / 128",
        "FBGEMM, CPU",
        "kernels_avx2",
        ("fbgemm_dim16", "fbgemm_dim64", "fbgemm_dim128"),
        (("fbgemm_dim16_largest_weight_difference", "largest difference of a weight"),),
    ),
    Headline(
        "Tables with Adagrad; dim 16 / 64",
        "`EmbeddingBag(sparse=True)`, `torch.optim.Adagrad`",
        "kernels",
        ("torch_adagrad_dim16", "torch_adagrad_dim64"),
    ),
    Headline(
        "Tables with Adam; dim 16 / 64",
        "`torch.optim.SparseAdam`",
        "kernels",
        ("sparse_adam_dim16", "sparse_adam_dim64"),
    ),
    Headline(
        "Whole DLRM step, Criteo Kaggle sizes: float32 / bf16 and `torch.compile`",
        "plain torch, float32",
        "step",
        ("torch_float32", "torch_bf16_compile"),
        (
            ("auc torch float32", "AUC of torch"),
            ("auc slipstream float32", "ours"),
            ("auc slipstream bf16 compile", "ours in bf16"),
        ),
    ),
    Headline(
        "Training on real clicks (Globo), each predicted before it is trained on",
        "plain torch",
        "globo_prequential",
        ("torch",),
        (("AUC on the start", "AUC"), ("AUC of torch on the start", "of torch")),
    ),
    Headline(
        "Row update with 80 % of the accesses gated: cold rows / hot rows",
        "no gates",
        "gates",
        ("cold", "hot"),
    ),
    Headline(
        "FuxiCTR's DeepFM / DCNv2 / DLRM after `convert`, lazy Adam",
        "as it ships, Adam",
        "interop_fuxictr",
        ("DeepFM", "DCNv2", "DLRM"),
        (("AUC DeepFM own", "AUC of DeepFM"), ("AUC DeepFM none_dense", "ours, dense"), ("AUC DeepFM lazy", "lazy")),
    ),
    Headline(
        "RecBole's BPR / NeuMF / SASRec after `convert`, lazy Adam",
        "as it ships, Adam",
        "interop_recbole",
        ("BPR", "NeuMF", "SASRec"),
        (
            ("NDCG@10 NeuMF own", "NDCG@10 of NeuMF"),
            ("NDCG@10 NeuMF none_dense", "ours, dense"),
            ("NDCG@10 NeuMF lazy", "lazy"),
        ),
    ),
    Headline(
        "Skipping, same engine, AUC no lower: half of the inputs, label alone / `importance`; synthetic, 8 % positives",
        "full training",
        "frontier_synthetic_8_half",
        ("equal quality, label alone 0.5", "equal quality, importance 0.5"),
        (
            ("AUC of full training", "AUC of full training"),
            ("equal quality, importance 0.5", "importance's difference to it"),
            ("equal quality, importance 0.5, standard error", "standard error"),
        ),
    ),
    Headline(
        "The same, half of the inputs by label alone / `importance`; 2 % positives",
        "full training",
        "frontier_synthetic_2",
        ("equal quality, label alone 0.5", "equal quality, importance 0.5"),
        (
            ("AUC of full training", "AUC of full training"),
            ("equal quality, importance 0.5", "importance's difference to it"),
            ("equal quality, importance 0.5, standard error", "standard error"),
        ),
    ),
)
