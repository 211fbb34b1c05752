"""Specialising a network: its family of training, how it begins, and its forms (`retrain/specialize.py`)."""
