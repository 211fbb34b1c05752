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
    shipped = [models.find(name) for name in models.available()]
    rows = [
        {
            "name": model.name,
            "purpose": model.kind.purpose(model.metadata()),
            "size": f"{model.path.stat().st_size / 1000:.0f} kB",
            "score": model.kind.score(model.metadata()),
            "command": f"sparsemask {model.kind.command}",
        }
        for model in shipped
    ]
    columns = {
        "name": "name", "purpose": "what it does", "size": "size", "score": "score", "command": "used by",
    }  # fmt: skip
    print(table(rows, columns))
    print("\nsparsemask upscale IN OUT --scale 2        takes the dense one of the scale; others are named:")
    examples = {model.task: model.kind.line(model.name) for model in shipped}  # of each task the last one
    print("\n".join(examples.values()))
    print("sparsemask models NAME                     prints a card")
    return 0
