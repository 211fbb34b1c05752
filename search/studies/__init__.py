"""Studies: many trials of search, prune and retrain, and the front of the best (`search/study.py`)."""
