"""The layouts of published point-cloud data sets."""
