"""The first ten minutes of a stranger: a wheel, pictures of one's own, and the commands of the page, in its order."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bench.wheels import copy_source
from tiny import ROOT
from wheels import bare, build, install, make_environment

NAMES = ["ground", "ball", "box", "sign"]
IGNORED = 11  # in these labels: a line around every object
# What makes a command short, by its verb; the page's words stand as they are.
FEW = {
    "search": "--max_iter 4 --crop_size 65 --eval_interval 4 --log_interval 1 --bn_reestimate 2 --n_worker 0",
    "retrain": "--max_iter 4 --eval_interval 4 --log_interval 1 --bn_reestimate 2 --n_worker 0",
    "export": "--repeats 1 --eval_limit 1",
}


def commands() -> list[str]:
    """The command lines of the page."""
    page = (ROOT / "docs" / "getting_started.md").read_text()
    (block,) = re.findall(r"^## Ten minutes.*?^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return block.replace("\\\n", " ").splitlines()


def scene(number: int) -> tuple[Image.Image, Image.Image]:
    """A photograph and its label: objects with an unlabelled rim on noisy ground, of several sizes."""
    rng = np.random.default_rng(number)
    height, width = 64 + 8 * (number % 3), 80
    noise = rng.normal(0, 12, (height, width, 3)) + (110, 130, 100)
    photo, label = Image.fromarray(noise.clip(0, 255).astype(np.uint8)), Image.new("L", (width, height), 0)
    for index, colour in ((1, (200, 40, 40)), (2, (40, 60, 210)), (3, (240, 220, 60))):
        x, y, r = int(rng.integers(14, width - 14)), int(rng.integers(14, height - 14)), int(rng.integers(6, 13))
        for picture, fill, rim in ((photo, colour, colour), (label, index, IGNORED)):
            pen = ImageDraw.Draw(picture)
            shape = pen.ellipse if index == 1 else pen.rectangle
            shape((x - r, y - r, x + r, y + r), fill=fill, outline=rim)
    return photo, label


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working directory with the page's files."""
    folder = tmp_path_factory.mktemp("stranger")
    for name in ("photos", "labels", "new photos"):
        (folder / name).mkdir()
    names = [f"scene_{number:02d}" for number in range(14)]
    for number, name in enumerate(names):
        photo, label = scene(number)
        photo.save(folder / "photos" / f"{name}.jpg", quality=92)
        label.save(folder / "labels" / f"{name}.png")
    for number in (20, 21):
        scene(number)[0].save(folder / "new photos" / f"new {number}.jpg")
    (folder / "train.txt").write_text("\n".join(names[:10]) + "\n")
    (folder / "val.txt").write_text("\n".join(names[10:]) + "\n")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment in which the wheel is installed."""
    wheel = build(copy_source(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel"))
    made = make_environment(tmp_path_factory.mktemp("environment") / "env")
    install(made, str(wheel))
    return made


def typed(line: str, python: Path, place: Path) -> str:
    """What a command line prints, on both streams, typed in the environment; it must not fail."""
    words = shlex.split(line)
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    home = bare(place / "home", PATH=path)
    done = subprocess.run(
        words, cwd=place, env=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0, (line, done.stdout)
    return done.stdout


@pytest.mark.slow
def test_the_first_ten_minutes(python, place):
    said = {}
    for line in commands():
        verb = shlex.split(line)[1]
        said[verb] = typed(f"{line} {FEW.get(verb, '')}", python, place)
    everything = "\n".join(said.values())
    # Nobody who has the command is told of a checkout's files, and nothing comes out that is none of ours.
    assert not re.findall(r"python \S+\.py|Traceback|Warning:", everything), everything
    assert "14 pairs checked: no faults" in said["check"]
    assert re.search(r"budget: --budget_macs 35% .*multiply-adds", said["search"])
    kept, most = (float(re.search(rf"{words} ([\d.]+) M", said["search"] + said["retrain"])[1])
                  for words in ("connections, [^,]*,", "dense network's,"))  # fmt: skip
    assert kept <= most

    # Each names the next one of the page, as it stands there or with the flags of this run.
    following = {verb: re.findall(r"^next: sparsemask (\S+) (.*)$", text, re.MULTILINE) for verb, text in said.items()}
    for verb, then in (("search", "prune"), ("prune", "retrain"), ("retrain", "eval"), ("eval", "export")):
        assert [name for name, _ in following[verb]] == [then], said[verb]
    assert "--run runs/first" in following["search"][0][1] and following["prune"][0][1] == "--mask_path mask.npy"

    # A rim of 11 would be a class beyond the four: it counts for nothing.
    table = said["eval"].splitlines()
    rows = [re.match(r"(\w+) +[\d.]+ +[\d.]+ +([\d.]+)$", line) for line in table]
    assert [row[1] for row in rows if row] == NAMES and "(4 pictures)" in said["eval"]
    truth = [np.array(Image.open(place / "labels" / f"scene_{n:02d}.png")) for n in range(10, 14)]
    counted = np.concatenate([one[one != IGNORED] for one in truth])
    for index, row in enumerate(filter(None, rows)):
        assert float(row[2]) == pytest.approx(100 * np.mean(counted == index), abs=0.06)

    page = (place / "runs/small/report.html").read_text()
    assert "sparsemask eval --run runs/small" in page and "python retrain" not in page
    assert all(f">{name}<" in page for name in NAMES)

    listed = json.loads((place / "predictions/classes.json").read_text())
    assert [listed[str(number)]["name"] for number in range(4)] == NAMES
    for photo in (place / "new photos").iterdir():
        label = Image.open(place / "predictions" / f"{photo.stem}.png")
        assert label.size == Image.open(photo).size and set(np.unique(label)) <= {0, 1, 2, 3}
        assert (place / "predictions" / f"{photo.stem}_overlay.jpg").is_file()
    assert "2 of 2 pictures predicted in " in said["predict"] and "by small.pt2" in said["predict"]


@pytest.mark.slow
def test_the_first_mistakes_are_said(python, place):
    """An ignored number that was not named; help that names what this user has."""
    words = "check --im_path photos --gt_path labels --list train.txt --n_class 4".split()
    done = subprocess.run(
        [python.with_name("sparsemask"), *words], cwd=place, env=bare(place / "home"), capture_output=True, text=True
    )
    assert done.returncode == 2 and f"--ignore_index {IGNORED} where it marks pixels" in done.stdout
    verbs = ["search", "prune", "retrain", "eval", "export", "specialize", "study", "check", "prepare"]
    code = (
        "import sys; sys.argv[0] = 'sparsemask'\n"
        "from sparsemask.cli.main import main\n"
        f"for verb in {verbs}:\n    try: main([verb, '--help'])\n    except SystemExit: print(end=chr(12))"
    )
    done = subprocess.run([python, "-c", code], cwd=place, env=bare(place / "home"), capture_output=True, text=True)
    for verb, text in zip(verbs, done.stdout.split("\f"), strict=False):
        assert f"sparsemask {verb}" in text and not re.findall(r"python \S+\.py", text), text
    assert done.stdout.count("\f") == len(verbs), done.stderr
