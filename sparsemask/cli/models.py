"""Models: the trained networks that ship with the package.

sparsemask models             list them
sparsemask models NAME        the card of one: data, terms, scores, how to make it again
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsemask.errors import command
from sparsemask.options import Parser


def parser() -> Parser:
    """The command's flags."""
    result = Parser("models", prog="sparsemask models", description=__doc__)
    result.add_argument("name", nargs="?", help="the network whose card is printed")
    return result


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    from sparsemask import models
    from sparsemask.tables import table

    if options.name:
        print(models.find(options.name).card.strip())
        return 0
    rows = []
    for model in map(models.find, models.available()):
        entries = model.metadata()
        rows.append({**entries, "name": model.name, "size": f"{model.path.stat().st_size / 1000:.0f} kB"})
    columns = {
        "name": "name", "scale": ("scale", "d"), "architecture": "architecture", "size": "size",
        "set5_psnr": ("Set5 dB", ".2f"), "set5_bicubic": ("bicubic dB", ".2f"),
    }  # fmt: skip
    print(table(rows, columns))
    print("\nsparsemask upscale IN OUT --scale 2 uses them; sparsemask models NAME prints a card")
    return 0
