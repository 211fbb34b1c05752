"""Stereo pairs: what networks take, files and layouts of the public sets, generated scenes with exact disparity.

Pictures are rectified: the point that the left picture shows at (x, y) is at (x - d, y) in the right one, where d >= 0
is its disparity in pixels. Disparity maps are float32 (H, W) of the left picture; 0 is no value.
"""
