"""SMStereo learns to match: shifted pairs are regressed to their shift after a short training on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from literal_sparse import one_thread  # noqa: F401
from sparsemask.engine.method import reestimate
from sparsemask.spaces.smstereo.network import SMStereo
from sparsemask.spaces.sparse_conv.masking import fix_masks
from sparsemask.tasks.stereo.batch import StereoPair

SHIFTS = (4, 11)  # px
STEPS = 12


def shifted() -> StereoPair:
    """One left picture, and right ones in which all of it lies SHIFTS pixels further left."""
    draw = torch.Generator().manual_seed(0)
    wide = F.avg_pool2d(torch.randn(1, 3, 34, 48 + max(SHIFTS) + 2, generator=draw), 3, 1)
    wide = wide / wide.std()
    right = torch.cat([wide[..., d : d + 48] for d in SHIFTS])
    return StereoPair(wide[..., :48].expand_as(right).contiguous(), right)


# The left picture is the same: only by matching can the two be told apart.
def test_a_shift_is_regressed_to_itself():
    torch.manual_seed(0)
    network, pair = SMStereo(16).train(), shifted()
    truth = torch.tensor(SHIFTS, dtype=torch.float32).view(-1, 1, 1).expand(-1, 32, 48)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    fix_masks(network)  # soft ones would have to become hard first, as in a search
    for _ in range(STEPS):
        heads = network(pair)
        optimizer.zero_grad()
        sum(F.smooth_l1_loss(head, truth) for head in heads).backward()
        optimizer.step()
    reestimate(network, [pair])  # so few steps leave running averages behind
    network.eval()
    with torch.no_grad():
        error = (network(pair) - truth)[..., max(SHIFTS) :].abs().mean((1, 2))  # further left the right picture ends
    assert error.max() < 1  # what knows no matching is 3.5 off
    assert min(float(one) for one in network.kept) < 1  # masks that keep all would show nothing
