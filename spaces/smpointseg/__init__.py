"""SMPointSeg: segmentation of point clouds with masks over points and channels."""
