"""Drawings of point clouds: figures, and a viewer for the browser."""
