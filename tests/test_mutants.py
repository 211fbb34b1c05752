"""What mutation testing rests on: its lists, the judgements in the docs, and tests in forked processes."""

from __future__ import annotations

import tomllib

import pytest

from mutants.run import JUDGED, Change, in_order, judgements, outcome, pointless
from tiny import ROOT

MODULES = tomllib.loads((ROOT / "tests" / "mutants" / "modules.toml").read_text())


def test_modules_and_their_tests_are_there():
    for module, files in MODULES.items():
        assert (ROOT / module).is_file()
        assert files and all((ROOT / "tests" / file).is_file() for file in files), module


def test_judgements_are_of_known_modules_and_give_a_reason():
    text = JUDGED.read_text()
    found = judgements(text)
    assert found and {change.module for change in found} <= set(MODULES)
    assert all(change.old != change.new and len(reason) > 8 for change, reason in found.items())
    # Every row of the page is read: none is lost to a slip of the pen.
    rows = [line for line in text.splitlines() if line.startswith("- `")]
    assert len({(change.module, change.old, reason) for change, reason in found.items()}) == len(rows)


def test_judgements_by_hand():
    text = "- `a` → `b`: of no module\n### `x/y.py`\n- `a > 1` → `a >= 1`, `a > 0`: one: two\n- `c` → d: no code\n"
    assert judgements(text) == {
        Change("x/y.py", "a > 1", "a >= 1"): "one: two",
        Change("x/y.py", "a > 1", "a > 0"): "one: two",
    }


def test_changes_are_read_from_diffs():
    diff = "--- a/m.py\n+++ b/m.py\n@@ -1,2 +1 @@\n-    work(\n-        1)\n+    pass"
    assert Change.of("m.py", diff) == Change("m.py", "work( 1)", "pass")


def test_annotations_and_texts_of_errors_are_left_out():
    source = (
        'def f(a: int | None = 1) -> int | str:\n    é: "é" = 1 + 2\n    raise ValueError(f"{a + 1}", a - 1) from a\n'
    )
    lines = source.splitlines()
    found = {lines[row - 1][start:end] for (row, start), (_, end) in pointless(source)}
    assert found == {"int | None", "int | str", '"é"', 'f"{a + 1}"', "a - 1"}


class Item:
    def __init__(self, occurrence):
        self.mutations = [self]
        self.operator_name, self.occurrence, self.start_pos = "o", occurrence, (1, 2)


def test_the_order_is_a_seed_s_and_others_do_not_change_it():
    order = lambda numbers, seed: [item.occurrence for item in in_order(map(Item, numbers), seed)]
    whole = order(range(50), 0)
    assert sorted(whole) == list(range(50)) != whole
    assert order(range(49, -1, -1), 0) == whole != order(range(50), 1)
    assert order(range(0, 50, 2), 0) == [number for number in whole if number % 2 == 0]


@pytest.mark.parametrize(
    ("body", "seconds", "ended"),
    [
        ("def test(): pass", 60, "passed"),
        ("def test(): assert 0", 60, "failed"),
        ("import time\ndef test(): time.sleep(60)", 1.5, "timeout"),
        pytest.param("def test(: pass", 60, "failed", marks=pytest.mark.slow),
        pytest.param(
            "import os\ndef test(): os._exit(0 if os.environ.get('SPARSEMASK_DATA') else 1)",
            60,
            "failed",
            marks=pytest.mark.slow,
        ),
        pytest.param("import os\ndef test(): os.kill(os.getpid(), 9)", 60, "failed", marks=pytest.mark.slow),
        pytest.param("", 60, "none", marks=pytest.mark.slow),
    ],
)
def test_how_tests_end(body, seconds, ended, tmp_path):
    (tmp_path / "test_it.py").write_text(body + "\n")
    (tmp_path / "setup.cfg").write_text("[tool:pytest]\nmarkers =\n    real: x\n    slow: x\n")
    assert outcome(tmp_path, ["test_it.py"], seconds) == ended
    assert not list(tmp_path.rglob("*.pyc"))
