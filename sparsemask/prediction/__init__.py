"""Trained networks as functions of pictures, and what their files say of themselves."""

from sparsemask.prediction.description import Description
from sparsemask.prediction.predictor import Picture, Prediction, Predictor, as_rgb

__all__ = ["Description", "Picture", "Prediction", "Predictor", "as_rgb"]
