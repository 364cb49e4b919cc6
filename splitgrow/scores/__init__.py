"""Scores of layers: where a model would gain most by growing, measured on some batches."""

from splitgrow.scores.measures import MEASURES
from splitgrow.scores.ranking import LayerScore, Ranking, rank

__all__ = ["MEASURES", "LayerScore", "Ranking", "rank"]
