"""Drawings of searches and results; matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from sparsemask.pictures.architecture import draw_architecture
from sparsemask.pictures.comparison import draw_comparison
from sparsemask.pictures.confusion import draw_confusion
from sparsemask.pictures.curves import draw_curves
from sparsemask.pictures.front import draw_front
from sparsemask.pictures.maps import draw_maps, save_map
from sparsemask.pictures.precision_recall import draw_precision_recall
from sparsemask.pictures.predictions import draw_predictions, save_prediction
from sparsemask.pictures.weights import draw_weight_history, draw_weights

__all__ = [
    "draw_architecture",
    "draw_comparison",
    "draw_confusion",
    "draw_curves",
    "draw_front",
    "draw_maps",
    "draw_precision_recall",
    "draw_predictions",
    "draw_weight_history",
    "draw_weights",
    "save_map",
    "save_prediction",
]
