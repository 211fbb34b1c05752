"""Stereo pairs: what networks take, files and layouts of the public sets, generated scenes with exact disparity.

Images are rectified: the point that the left image shows at (x, y) is at (x - d, y) in the right one, where d >= 0
is its disparity in pixels. Disparity maps are float32 (H, W) of the left image; 0 is no value.
"""
