"""docs/guides.md: every file in it is written, every command in it run, in their order, on small data."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from literal_sparse import one_thread  # noqa: F401
from small_classes import write_npz
from sparsemask import datasets, plugins
from sparsemask.errors import UseError
from sparsemask.plugins import imported
from tiny import MASKS, ROOT, SMALL, borrow_kernels, environment, make_data

GUIDES = ROOT / "docs" / "guides.md"
FENCED = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
OWN = ("my_encoder", "my_task", "my_net")
SPAWN = ("torchrun", "search/study.py")  # what starts processes of its own is run as one

STEPS = ["--max_iter", "2", "--eval_interval", "2"]
# What makes a command small, by a word of it, the first that fits: steps, sizes, and how often is timed.
HINGE = ["--batch_size", "10", "--n_worker", "0", "--lr", "0.05", "--schedule", "constant", "--warmup", "0", *STEPS]
GROUPS = ["--lr_ratio", "1", "--prox_start", "0", "--sparse", "0.5", "--thres", "0.01", "--stop_limit", "0"]
FEW_ROUNDS = ["--repeats", "1", "--eval_limit", "1"]
OTHERS = ["--trust", "my_encoder:Encoder", "--trust", "my_task:Rare"]  # of the newest run here, which has both
FEW = {
    "--arch": [*HINGE, *GROUPS],
    "--data_root": HINGE,
    "export.py --run": [*FEW_ROUNDS, *OTHERS],
    "export.py": FEW_ROUNDS,
    "eval.py --trust": OTHERS,
    "specialize.py": [*SMALL[2:], *STEPS, "--rounds", "1", *OTHERS],
    "my_task:Rare": [*SMALL, *STEPS, "--backbone_name", "my_encoder:Encoder"],
    "torchrun": [*SMALL, *MASKS, *STEPS, "--gpu", "-1", "--backbone_name", "my_encoder:Encoder"],
    "study.py": [*SMALL, *MASKS, *STEPS, "--gpu", "-1", "--backbone_name", "my_encoder:Encoder"],
    "--search": [*SMALL, *MASKS, *STEPS],
    "train.py": [*SMALL, *STEPS],
}  # fmt: skip


def sections() -> dict[str, list[tuple[str, str]]]:
    """(language, text) of the fenced parts below each heading."""
    parts = GUIDES.read_text().split("\n## ")[1:]
    return {part.partition("\n")[0]: FENCED.findall(part) for part in parts}


def named(text: str) -> str:
    """The text with the specialised run's name, once there is one."""
    found = [one.parent for one in Path("runs").glob("*/forms.json")]
    return text.replace("runs/NAME", str(found[0])) if found else text


def run(line: str) -> None:
    """One command of the guides, as it stands but for what makes it small."""
    more = next((flags for word, flags in FEW.items() if word in line), [])
    words = [*shlex.split(line), *more]
    if any(word in line for word in SPAWN):
        launch = ["-m", "torch.distributed.run"] if words[0] == "torchrun" else []
        words = [str(ROOT / word) if word.endswith(".py") else word for word in words[1:]]
        home = environment(Path.cwd() / "home")
        done = subprocess.run([sys.executable, *launch, *words], env=home, capture_output=True, text=True, timeout=600)
        print(done.stderr, file=sys.stderr)  # whole, where a test fails
        assert done.returncode == 0, line
        return
    assert words[0] == "python", line
    if words[1:3] == ["-m", "pytest"]:
        done = subprocess.run([sys.executable, *words[1:], "-q"], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (line, done.stdout[-3000:])
        return
    verb = importlib.import_module(f"sparsemask.{words[1].removesuffix('.py').replace('/', '.')}")
    assert verb.main(words[2:]) == 0, line


@pytest.fixture(autouse=True)
def own_names():
    """What a test trusts is forgotten after it."""
    with plugins.trusting([]):
        yield


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with labelled pictures and classified ones."""
    make_data(tmp_path / "data", n=8)
    for one in (tmp_path / "data").iterdir():
        one.rename(tmp_path / one.name)
    write_npz(tmp_path / "classes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    yield tmp_path
    for name in OWN:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_guides_do_what_they_say(place, capfd):
    found = sections()
    assert list(found) == [
        "My own data", "My own backbone", "My own task", "My own CNN", "A time budget", "Many machines",
        "Training recipes", "What is in a mask file",
    ]  # fmt: skip
    for title, blocks in found.items():
        assert blocks, title  # a guide without anything to run is no guide
        for language, text in blocks:
            if text.startswith("# my_"):
                Path(text.partition("\n")[0][2:]).write_text(text)
            elif language == "python":
                exec(compile(named(text), title, "exec"), {})
            else:
                assert language == "sh", (title, language)
                for line in text.strip().splitlines():
                    run(named(line))
    said = capfd.readouterr().out
    # Each own part took part: the task's figure, the backbone's and the network's files, the masks that were read.
    assert "mean_accuracy" in said and "channels everywhere" in said and "takes end points" in said
    assert all(Path(name).stat().st_size for name in ("net.safetensors", "net.pt2", "small.pt2", "fast.pt2"))
    assert list(Path("predictions").glob("*.png")) and list(Path("runs/first").glob("front.md"))
    # A program needs none of the code that made it: run where that cannot be found.
    code = "import torch; p = torch.export.load('net.pt2').module(); print(tuple(p(torch.zeros(1, 3, 40, 56)).shape))"
    os.rename("my_encoder.py", "gone.txt")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(1, 4, 20, 28)", done.stderr


# what is written into mine.py, the word, what it should be, words of the one line
BAD = [
    ("", "mine:Absent", "task", ["mine:Absent", "cannot be imported"]),
    ("", "absent:Task", "backbone", ["absent:Task", "cannot be imported"]),
    ("x = 3", "mine:x", "network", ["mine:x", "no callable"]),
    ("def Task(options): pass", "mine:Task", "task", ["no class of a task"]),
    ("def make(): return 3", "mine:make", "backbone", ["channels", "deepest first"]),
]


@pytest.mark.parametrize(("code", "word", "kind", "said"), BAD)
def test_what_is_no_part_is_refused_in_one_line(tmp_path, monkeypatch, code, word, kind, said):
    from sparsemask import tasks
    from sparsemask.spaces import backbones

    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code)
    sys.modules.pop("mine", None)
    importlib.invalidate_caches()
    plugins.trust(word)
    use = {"task": tasks.find, "backbone": backbones.create, "network": lambda word: imported(word, "network")}[kind]
    with pytest.raises(UseError) as error:
        use(word)
    sys.modules.pop("mine", None)
    assert all(one in str(error.value) for one in said) and "\n" not in str(error.value)


def test_an_own_task_must_fit_the_space(tmp_path, monkeypatch):
    from sparsemask import tasks

    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from sparsemask.tasks.segmentation import SegmentationTask as A\n"
        "from sparsemask.tasks.super_resolution import SuperResolutionTask as B\n"
    )
    sys.modules.pop("mine", None)
    importlib.invalidate_caches()
    plugins.trust("mine:A"), plugins.trust("mine:B")
    assert tasks.fits("mine:A", "segmentation") and not tasks.fits("mine:A", "super_resolution")
    assert tasks.fits("mine:B", "super_resolution")  # derived from the space's own task
    sys.modules.pop("mine", None)


def test_a_backbone_of_one_s_own_takes_its_weights(tmp_path, monkeypatch):
    from sparsemask.spaces import backbones
    from sparsemask.spaces.backbones.weights import load_backbone_weights

    monkeypatch.chdir(tmp_path)
    (text,) = [text for _, text in sections()["My own backbone"] if text.startswith("# my_")]
    Path("my_encoder.py").write_text(text)
    importlib.invalidate_caches()
    plugins.trust("my_encoder:Encoder")
    made = backbones.create("my_encoder:Encoder", momentum=0.2)
    assert made.steps[0][1].momentum == 0.2
    torch.save(made.state_dict(), "weights.pth")
    found = load_backbone_weights("weights.pth", "my_encoder:Encoder")
    assert all(torch.equal(found.state[name], value) for name, value in made.state_dict().items())
    assert datasets.backbone_weights("my_encoder:Encoder", None) is None  # a colon in a name finds no file by chance
    sys.modules.pop("my_encoder", None)
