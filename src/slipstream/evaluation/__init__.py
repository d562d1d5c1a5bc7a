"""How good predictions are: ranking of labels, log-loss, calibration, by popularity, and ranked lists."""

from slipstream.evaluation.diversity import Diversity, diversity_of_highest
from slipstream.evaluation.item_sets import ItemSets
from slipstream.evaluation.metrics import Scores, auc, calibration, log_loss, score
from slipstream.evaluation.novelty import first_seen, score_new_items
from slipstream.evaluation.popularity import BUCKETS, access_counts, popularity_buckets, score_by_popularity
from slipstream.evaluation.popularity_profile import popularity_profile
from slipstream.evaluation.prequential import CurvePoint, learning_curve
from slipstream.evaluation.ranking import RankingScores, coverage, gini, ndcg_at_k, rank_items, recall_at_k, score_lists
from slipstream.evaluation.reliability import ReliabilityBin, reliability

__all__ = [
    "BUCKETS",
    "CurvePoint",
    "Diversity",
    "ItemSets",
    "RankingScores",
    "ReliabilityBin",
    "Scores",
    "access_counts",
    "auc",
    "calibration",
    "coverage",
    "diversity_of_highest",
    "first_seen",
    "gini",
    "learning_curve",
    "log_loss",
    "ndcg_at_k",
    "popularity_buckets",
    "popularity_profile",
    "rank_items",
    "recall_at_k",
    "reliability",
    "score",
    "score_by_popularity",
    "score_lists",
    "score_new_items",
]
