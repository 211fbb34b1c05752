"""The options of stereo, small."""

from __future__ import annotations

from small_config import configured
from sparsemask.config import RunConfig
from sparsemask.spaces.smstereo.space import SMStereoNetwork
from sparsemask.tasks.stereo.options import StereoData


def options(**given) -> RunConfig:
    """The task's configuration, crops of 32x64, disparities below 32."""
    more = {"task": "stereo", "n_worker": 0, "maxdisp": 32, "crop_height": 32, "crop_width": 64}
    return configured(StereoData, SMStereoNetwork, **{**more, **given})
