"""Files, folders and patterns on command lines: one rule for every command; many files, of which some are bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsemask import UseError
from sparsemask.cli.inputs import PICTURES, Kind, each, expand

CLOUDS = Kind("cloud", "clouds", lambda path: path.suffix == ".ply")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.png", "a/1.JPG", "a/.hidden.png", "a/notes.txt", "a/deep/3.png", "a/out/1.png", "b/1.ply"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    Path("a/folder.png").mkdir()
    return tmp_path


RULES = {
    "folder": (["a"], {}, ["a/1.JPG", "a/2.png"]),
    "folders of folders": (["a"], {"recursive": True}, ["a/1.JPG", "a/2.png", "a/deep/3.png", "a/out/1.png"]),
    "without what is written": (
        ["a"], {"recursive": True, "without": Path("a/out")}, ["a/1.JPG", "a/2.png", "a/deep/3.png"],
    ),
    "the folder itself": (["a"], {"without": Path("a")}, ["a/1.JPG", "a/2.png"]),
    "pattern": (["a/*.png"], {}, ["a/2.png"]),
    "deep pattern": (["a/**/*.png"], {}, ["a/2.png", "a/deep/3.png", "a/out/1.png"]),
    "each once, in order": (["a/2.png", "a", "a/*"], {}, ["a/2.png", "a/1.JPG"]),
    "a file of any kind": (["a/notes.txt"], {}, ["a/notes.txt"]),
    "one of several is absent": (["a/2.png", "gone.png"], {}, ["a/2.png", "gone.png"]),
    "standard input": (["-", "a/2.png"], {"stream": True}, ["-", "a/2.png"]),
    "another kind": (["b", "b/*"], {"kind": CLOUDS}, ["b/1.ply"]),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_rules(place, rule):
    words, how, wanted = RULES[rule]
    assert expand(words, **how) == wanted


def test_brackets_in_a_name_are_no_pattern(place):
    Path("a/x[1].png").write_bytes(b"")
    assert expand(["a/x[1].png"]) == ["a/x[1].png"]


@pytest.mark.parametrize(
    ("words", "how", "message"),
    [
        (["b"], {}, r"b: no pictures in this folder \(--recursive looks deeper\)"),
        (["b"], {"recursive": True}, "b: no pictures in this folder$"),
        (["b/*"], {}, "no pictures match this pattern"),
        (["a"], {"kind": CLOUDS}, "a: no clouds in this folder"),
        (["gone.png"], {}, "gone.png: no such picture or folder"),
        (["a", "fotos"], {}, "fotos: no such picture or folder"),
        (["-"], {}, "-: no such picture or folder"),
        (["-", "-"], {"stream": True}, "name it once"),
    ],
)
def test_what_names_nothing_is_refused(place, words, how, message):
    with pytest.raises(UseError, match=message):
        expand(words, **how)


def test_order_is_by_name_whatever_the_system_says(place, monkeypatch):
    listed = list(Path("a").iterdir())
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(sorted(listed)))
    assert expand(["a"], PICTURES) == ["a/1.JPG", "a/2.png"]


def test_a_bad_one_of_many_is_named_and_the_rest_done(capfd):
    done = []

    def do(name: str) -> list[str]:
        if name == "bad":
            raise UseError("is torn")
        done.append(name)
        return [f"{name} -> out", f"note: {name}"]

    assert each(["x", "bad", "y"], do, str, "things done", "out") == 1
    said = capfd.readouterr()
    assert done == ["x", "y"] and said.err == "error: bad: is torn\n"
    first, note, second, _, last = said.out.splitlines()
    assert first.startswith("[1/3, ") and note == "note: x" and second == "[3/3] y -> out"
    assert last.startswith("2 of 3 things done in ") and last.endswith(", 1 failed (named above)")
    assert each(["x"], do, str, "things done", "out") == 0
    assert capfd.readouterr().out.endswith(": out\n")
