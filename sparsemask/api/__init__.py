"""What users call from Python. It stands above the verbs, as the command line does."""
