"""One run of a network, watched operator by operator: which channels can only be removed together."""
