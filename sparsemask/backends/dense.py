"""Dense convolutions by torch's own operators, after which native kernels set what the mask drops.

Kept rows and dropped ones are convolved alike; only where dense channels must not see sparse ones, dropped rows are
computed again, from dense channels alone. That is the faster way where most is kept, and where torch's convolution is
much faster than a product of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.backends.reference import Reference
from sparsemask.ops import dispatch
from sparsemask.ops.conv import ConvCall


class Dense(Reference):
    """The backend `dense`."""

    name = "dense"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why native kernels cannot set what is dropped; None where they can."""
        return dispatch.find("native").why_not(device, dtype)

    def conv(self, call: ConvCall) -> Tensor:
        """The whole convolution, and what is dropped set in its rows."""
        from sparsemask.backends.native import BACKEND as NATIVE

        return NATIVE.whole_conv(call)


BACKEND = Dense()
