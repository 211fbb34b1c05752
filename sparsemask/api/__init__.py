"""What users call from Python: the verbs as functions, and predictions. It stands above the verbs."""

from sparsemask.api.prediction import open_predictor, predict
from sparsemask.api.training import RunResult, TrainingStep, evaluate, prune, retrain, search

__all__ = ["RunResult", "TrainingStep", "evaluate", "open_predictor", "predict", "prune", "retrain", "search"]
