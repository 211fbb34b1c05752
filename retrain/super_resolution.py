"""Train a dense super-resolution network of a known architecture from pictures.

    python retrain/super_resolution.py --architecture SPAN --hr_path FOLDER --n_feats 24 --n_blocks 4 --max_iter 5000
    python retrain/super_resolution.py --pretrained_model spanx2_ch48.pth --hr_path FOLDER     go on from public weights
    python retrain/super_resolution.py --resume runs/NAME

Writes runs/<name>/: config.yaml, checkpoints/, metrics.jsonl and network.safetensors, which `sparsemask upscale` reads.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from sparsemask import families
from sparsemask.config import RunConfig, flag
from sparsemask.engine import Method
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, choose, command
from sparsemask.families import Built, TrainingFamily
from sparsemask.flags import NetworkSection
from sparsemask.options import Parser, positive
from sparsemask.spaces.sr_networks import ARCHITECTURES, SRNetwork, recognise, save
from sparsemask.training_setup import Context
from sparsemask.weights import load_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseNetwork(NetworkSection):
    """Which architecture, of which size; its scale is the data's."""

    architecture: str = flag("SPAN", help=f"{', '.join(ARCHITECTURES)} (default: SPAN)")
    n_feats: int = flag(48, positive, help="channels (default: 48)")
    n_blocks: int = flag(6, positive, help="blocks; convolutions of SRVGGNetCompact (default: 6)")
    pretrained_model: str | None = flag(help="weights to start from; they decide on architecture and size")


class DenseNetworks:
    """What the flags of training ask of a space."""

    name = "sr"
    task = "super_resolution"
    section = DenseNetwork


class Plain(Method):
    """Nothing but the task's loss; all weights at --lr."""

    def groups(self, model: nn.Module, config: RunConfig) -> list[dict]:
        """One group."""
        return [{"name": "network", "params": list(model.parameters()), "lr": config.training.lr}]


class DenseFamily(TrainingFamily[Built]):
    """Plain training: the task's loss, no masks."""

    verb = "super-resolution"

    def add_options(self, parser: Parser) -> None:
        """No flags of its own."""
        parser.set_defaults(optimizer="adamw", decay=0.0)

    def build(self, context: Context) -> Built:
        """The network of the flags, or of weights."""
        config = context.config
        network, scale = config.network, config.data.scale
        seed_all(config.run.seed)
        if network.pretrained_model:
            found = recognise(load_weights(network.pretrained_model), network.pretrained_model)
            if found is None or found[1]["scale"] != scale:
                raise UseError(f"{network.pretrained_model}: no weights of a known network of --scale {scale}")
            kind, arguments, state = found
            model = kind(**arguments)
            model.load_state_dict(state)
        else:
            choose(network.architecture, ARCHITECTURES, "architecture")
            model = ARCHITECTURES[network.architecture](scale=scale, n_feats=network.n_feats, n_blocks=network.n_blocks)
        return Built(model, notes={"family": "dense"})

    def method(self, context: Context, built: Built) -> Method:
        """No masks."""
        return Plain()

    def finish(self, context: Context, built: Built, result: dict) -> int:
        """Write the folded network."""
        network = copy.deepcopy(built.model).cpu().eval()
        assert isinstance(network, SRNetwork)
        network.fold()
        path = context.run.folder / "network.safetensors"
        save(path, network)
        context.describe(path)
        context.say(f"trained: {context.metric_text(result)}; {network.title}: {path}")
        return 0


FAMILY = DenseFamily()


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = families.training_parser(FAMILY, DenseNetworks, "retrain/super_resolution.py", __doc__)
    return families.train(FAMILY, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
