"""Serve: a page in the browser that shows what networks make of your pictures.

    sparsemask serve                       the networks for pictures that ship, at http://127.0.0.1:8000
    sparsemask serve compact-x4            one of them
    sparsemask serve runs/NAME             a class for every pixel, by a retrained network
    sparsemask serve net.onnx smsr_x2.pt   files; several networks are offered side by side

The page takes a picture and shows its classes with their colours and shares, or the picture enlarged beside what it
was, where the network computed it, and milliseconds. Networks are runs, files and names as `sparsemask predict` and
`sparsemask upscale` take them. Only this machine reaches the page, unless --host says otherwise; pictures stay in
memory and are never written. One picture is computed at a time. Ctrl-C ends it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsemask import models
from sparsemask.cli.computing import add_computing
from sparsemask.errors import command, say
from sparsemask.options import Parser, amount, natural

PICTURES = ("super_resolution", "segmentation")  # tasks of shipped networks that the page shows


def parser() -> Parser:
    """The command's flags."""
    result = Parser("serve", prog="sparsemask serve", description=__doc__)
    result.add_argument(
        "networks", nargs="*", metavar="NETWORK",
        help="names of `sparsemask models`, files (.safetensors, .pt2, .onnx, weights), runs (default: those for "
        "pictures that ship)",
    )  # fmt: skip
    result.add_argument("--port", type=natural, default=8000, help="0: any that is free (default: 8000)")
    result.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    result.add_argument(
        "--largest", type=amount, default=20e6, metavar="BYTES", help="of a picture's file, as 5M (default: 20M)"
    )
    result.add_argument(
        "--pixels", type=amount, default=1e6, metavar="N", help="of a picture that is enlarged (default: 1M)"
    )
    add_computing(result, types=False)
    return result


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    from sparsemask.cli.serving.networks import open_network
    from sparsemask.cli.serving.server import Server

    sources = dict.fromkeys(options.networks or models.available(PICTURES))
    networks = [open_network(source, options) for source in sources]
    with Server((options.host, options.port), networks, int(options.largest)) as server:
        for network in networks:
            network.warm_up()
            say(f"{network.name}")
        server.serve()
    return 0
