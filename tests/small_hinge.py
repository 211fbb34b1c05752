"""A user's own network, and the options of a search for its groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsemask import spaces, tasks
from sparsemask.config import RunConfig
from sparsemask.plugins import trust
from sparsemask.search import run as search_run
from sparsemask.spaces.group_sparsity.reduction import Hinged


class OwnCNN(nn.Module):
    """A stem, a block beside a shortcut, a strided convolution: pictures (N, 3, H, W) -> logits (N, n_class)."""

    def __init__(self, n_class: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, n_class)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.bn2(self.two(torch.relu(self.bn1(self.one(x))))))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


trust("small_hinge:OwnCNN", OwnCNN)


def hinged(arch: str = "resnet8", seed: int = 0, shape=(3, 8, 8), **more) -> Hinged:
    """A network with its pairs, weights and statistics drawn."""
    torch.manual_seed(seed)
    space, config = spaces.get("hinge"), {"arch": arch, "input_shape": shape, **more}
    made = space.hinged(space.plain(config), config)
    for module in made.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    made.network.eval()
    return made


def options(data, *argv: str) -> RunConfig:
    """A search's options as the command line makes them."""
    parser = search_run.parser("hinge")
    given = parser.given(["--search", "--data_root", str(data), *argv])
    return parser.resolve({"batch_size": 10, "lr": 0.1, "n_worker": 0, "log_interval": 1, "eval_interval": 0}, given)


def task(found: RunConfig):
    """The task on them."""
    return tasks.get("classification", found)
