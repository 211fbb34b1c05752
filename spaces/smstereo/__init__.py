"""SMStereo: disparity from two pictures with masks over voxels and channels."""
