"""The counts of docs/architecture.md: those that are met stay met, others do not grow."""

from __future__ import annotations

from pathlib import Path

import pytest

import house

ROOT = Path(__file__).resolve().parents[1]
# What is allowed of every count. Where it is less, lower the number here.
MOST = {"attributes": 12, "changes": 0, "circles": 0, "upward": 0, "undocumented": 0, "repeated": 1}


@pytest.fixture(scope="module")
def files() -> list[house.Source]:
    return house.sources(ROOT)


@pytest.mark.parametrize("name", house.COUNTS)
def test_counts_do_not_grow(files, name):
    what, count = house.COUNTS[name]
    places = count(files)
    assert len(places) <= MOST[name], f"{what}:\n" + "\n".join(places)


def made(tmp_path: Path, **texts: str) -> list[house.Source]:
    """Sources of a product in small: file names with __ for / and their texts."""
    for name, text in texts.items():
        path = tmp_path / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house.sources(tmp_path)


BLOCK = "\n".join(f"    x = x + {n} * y" for n in range(7))
FAULTS = {
    "attributes": {"spaces__a": "def f(x):\n    return getattr(x, 'a', hasattr(x, 'b'))\n"},
    "changes": {"spaces__a": "def f(self, options):\n    options.a, x = 1, 2\n"},
    "circles": {"spaces__a": "from spaces import b\n", "spaces__b": "import spaces.a\n"},
    "upward": {"spaces__a": "def f():\n    import sparsemask.search.run\n", "search__run": ""},
    "undocumented": {"spaces__a": "class A:\n    '''Text.'''\n\n    def f(self):\n        pass\n"},
    "repeated": {"spaces__a": f"def f(x, y):\n{BLOCK}\n", "spaces__b": f"def g(x, y):\n    # aside\n{BLOCK}\n"},
}


@pytest.mark.parametrize("name", house.COUNTS)
def test_every_count_finds_a_fault(tmp_path, name):
    files = made(tmp_path, **FAULTS[name])
    found = {other: len(count(files)) for other, (_, count) in house.COUNTS.items() if other != "undocumented"}
    assert len(house.COUNTS[name][1](files)) == 1
    assert {other for other, number in found.items() if number} == {name} - {"undocumented"}


def test_what_is_no_fault_is_not_counted(tmp_path):
    net = "class Net(Module):\n    '''A network.'''\n\n    def forward(self):\n        pass\n"
    later = "def f():\n    from spaces import b\n\n    return b\n"
    files = made(
        tmp_path,
        spaces__a="from spaces import b\n\n\n" + net,
        spaces__b=later.replace("import b", "import a").replace("def f", "def _f"),
        sparsemask__cli__main="import search.run\n",
        search__run="def _main(config):\n    config = config.replace(a=1)\n",
    )
    assert not any(count(files) for _, count in house.COUNTS.values())
