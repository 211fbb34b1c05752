"""SMSR: super-resolution with masks over locations and channels."""
