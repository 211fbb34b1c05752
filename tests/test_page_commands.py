"""Every command line of the documentation is run by a test, or stands here with the reason why not.

A page that gets a command is run with it, below; where that is not possible the command is claimed by another test, or
excused. Commands of the results' pages take hours: of these the flags are read by the parsers of today.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import literal_sr
import small_classes
import small_clouds
import small_pairs
import small_pictures
import voc_archives
from literal_sparse import one_thread  # noqa: F401
from page_commands import PAGES, Command, commands, every_command, is_known, run_verb
from pyramid import Pyramid
from raw_clouds import raw_rooms, raw_scans
from sparsemask import spaces
from sparsemask.spaces import backbones
from sparsemask.spaces.smstereo.checkpoints import save_smstereo
from sparsemask.spaces.smstereo.network import SMStereo
from sparsemask.sparse import backend
from sparsemask.synthetic import dense_tasks
from sparsemask.tasks.points.prepare.command import prepare_semantickitti_scans
from test_points_segment import network as point_network
from test_smsr import network as smsr
from tiny import MASKS, ROOT, SMALL, borrow_kernels, data_flags, make_data
from without_images import without_images

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- what is not run here


@dataclass(frozen=True)
class Claim:
    """Commands of pages that no walk below runs."""

    pages: str  # a pattern
    commands: str  # a pattern of how they begin
    why: str = ""
    test: str = ""  # in place of a reason: FILE::TEST, which runs them, or the same with other files


CLAIMS = [
    Claim("docs/results/", "", "hours, and figures of a quiet machine; their flags are read below"),
    Claim("README|CONTRIBUTING|docs/getting_started", "make ", "what runs the tests; the demo takes ten minutes"),
    Claim("docs/mutants", "make ", "an hour"),
    Claim("docs/architecture", "python tests/house.py", test="test_house.py::test_counts_do_not_grow"),
    Claim(
        "README|docs/getting_started",
        r"pip install (\.|sparsemask)",
        test="test_wheel.py::test_the_commands_of_a_wheel_run_beside_packages_of_the_same_names",
    ),
    Claim(
        "docs/guides",
        "(?!python search/run.py --search --training_list)",
        test="test_guides.py::test_the_guides_do_what_they_say",
    ),
    Claim("docs/getting_started", "sparsemask ", test="test_first_minutes.py::test_the_first_ten_minutes"),
    Claim("docs/getting_started", ".*pth.tar", test="test_chain.py::test_public_search_checkpoint_is_pruned"),
    Claim(
        "docs/getting_started",
        ".*resnet50",
        test="test_timm_backbones.py::test_the_verbs_chain_on_a_timm_encoder_and_on_to_another",
    ),
    Claim("docs/getting_started", "torchrun ", test="test_distributed.py::test_two_processes_equal_one"),
    Claim(
        "docs/cluster",
        "sbatch slurm_study.sh$|sbatch slurm_study.sh --grid|sbatch --array",
        test="test_cluster.py::test_an_array_task_is_a_worker_of_the_study",
    ),
    Claim("docs/cluster", "MASK=", test="test_cluster.py::test_two_nodes_start_one_training"),
    Claim("docs/cluster", "python ray_study.py", test="test_cluster.py::test_ray_starts_workers_of_the_study"),
    Claim("docs/cluster", "kubectl ", "no cluster; the file is read by a test"),
    Claim("docs/compress", "", test="test_compress.py::test_the_documented_recipe_and_commands_are_right"),
    Claim("docs/deployment", "pip install|pnnx ", "packages that the tests do not need"),
    Claim(
        "docs/deployment",
        "OMP_NUM_THREADS=1 python bench/deployment.py",
        test="test_deployment.py::test_the_bench_s_command",
    ),
    Claim(
        "docs/deployment",
        "python examples/cpp|build/cpp/segment",
        test="test_deployment.py::test_cpp_gives_the_labels_of_python",
    ),
    Claim(
        "docs/deployment", "cmake |build/cpp/enlarge_ort", test="test_deployment.py::test_cpp_enlarges_in_onnx_runtime"
    ),
    Claim(
        "docs/deployment", "build/cpp/enlarge ", test="test_deployment.py::test_cpp_enlarges_by_masks_as_python_does"
    ),
    Claim("docs/deployment", "sparsemask serve|curl ", test="test_serve.py::test_a_person_tries_it"),
    Claim("docs/super_resolution", "cat ", test="test_upscale_many.py::test_streams"),
    Claim(
        "docs/stereo",
        "sparsemask disparity .*--(focal|calib)",
        test="test_stereo_metres.py::test_the_pages_commands_run",
    ),
    Claim(
        "docs/point_clouds",
        "sparsemask segment-points .*--out-dir",
        test="test_points_las.py::test_the_pages_commands_run",
    ),
    Claim(
        "docs/point_clouds",
        "sparsemask segment-points .*--weights rooms",
        test="test_models.py::test_a_room_is_labelled_by_name",
    ),
    Claim(
        "docs/specialize",
        ".*--budget_ms",
        test="test_mask_budgets.py::test_segmentation_is_specialised_within_milliseconds",
    ),
    Claim("docs/group_sparsity", ".*--compiled", "compiles every layer"),
    Claim(
        "docs/group_sparsity",
        ".*(--variant blocks|blocks.npz)",
        test="test_hinge_blocks.py::test_every_verb",
    ),
    Claim(
        "docs/export",
        ".*(net.safetensors|--form skip)",
        test="test_export.py::test_the_command_writes_tries_and_times_all_formats",
    ),
    Claim(
        "docs/export", ".*--precision", test="test_export_precision.py::test_integers_are_calibrated_on_the_pictures"
    ),
    Claim(
        "docs/deployment",
        "python retrain/export.py",
        test="test_export.py::test_the_command_writes_tries_and_times_all_formats",
    ),
    Claim("docs/predict", "sparsemask predict", test="test_predict.py::test_what_is_written_and_said"),
    Claim("docs/tracking", "tensorboard ", "a viewer"),
    Claim(
        "docs/tracking",
        ".*--track (tensorboard,mlflow|wandb)",
        test="test_tracking.py::test_the_package_itself_takes_it",
    ),
    Claim("docs/tracking", ".*my_tracker:Diary", test="test_tracking.py::test_the_page_s_own_tracker_works"),
]


# ---- what is run


@dataclass(frozen=True)
class Walk:
    """The commands of a page, run in their order in a folder of small data."""

    prepare: Callable[[Path], None]
    few: dict[str, list[str]]  # by a pattern of a command, the first that fits: what makes it small
    names: dict[str, str] = field(default_factory=dict)  # what stands for the reader's files


STEPS = ["--max_iter", "2", "--eval_interval", "2", "--n_worker", "0"]
PIXELS = [*SMALL, *STEPS, "--eval_limit", "2", "--backbone_name", "small_pyramid"]  # the later flag of two counts
SAMPLED = [
    *PIXELS,
    *MASKS,
    "--budget_macs",
    "90%",
]  # the sample's preset has another one, out of reach for so small a network
OWN = data_flags(Path("data"))
CLASSES = ["--batch_size", "10", "--lr", "0.05", "--schedule", "constant", "--warmup", "0", *STEPS]
GROUPS = [*CLASSES, "--lr_ratio", "1", "--prox_start", "0", "--sparse", "0.5", "--thres", "0.01", "--stop_limit", "0"]
ENLARGED = ["--batch_size", "2", "--patch_size", "8", "--lr", "0.01", "--test_every", "4", *STEPS]
CROPS = ["--n_points", "64", "--train_steps", "4", "--val_steps", "2"]
CLOUDS = [*CROPS, "--grid", "0.25", "--test_area", "1", "--batch_size", "2", "--lr", "0.01", *STEPS]
NETWORK = [*small_clouds.NETWORK, "--keep", "0.5"]
SCENES = ["--crop_height", "32", "--crop_width", "48", "--batch_size", "2", "--bn_reestimate", "1", "--eval_limit", "1",
          "--lr", "0.001", *STEPS, "--max_iter", "1"]  # fmt: skip


def made_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def photographs(folder: Path) -> None:
    """VOC's archives, small, and a folder in its devkit's layout."""
    voc_archives.pack(folder / "VOCtrainval_11-May-2012.tar", voc_archives.voc_files())
    voc_archives.pack(folder / "benchmark.tgz", voc_archives.sbd_files())
    make_data(folder / "made")
    devkit = folder / "VOCdevkit/VOC2012"
    for mine, theirs in (("img", "JPEGImages"), ("gt", "SegmentationClass")):
        (folder / "made" / mine).rename(made_folder(devkit) / theirs)
    for name in ("train.txt", "val.txt"):
        (folder / "made" / name).rename(made_folder(devkit / "ImageSets/Segmentation") / name)


def listed(folder: Path) -> None:
    """Pictures that lie elsewhere, and lists of them and their labels."""
    make_data(folder / "data")
    for name in ("train.txt", "val.txt"):
        names = (folder / "data" / name).read_text().split()
        (folder / name).write_text("".join(f"data/img/{one}.png data/gt/{one}.png\n" for one in names))


def labelled(folder: Path) -> None:
    """Pictures in the layouts of the tasks."""
    dense_tasks.make_saliency(folder / "MSRA-B", 12, 48)
    dense_tasks.make_saliency(folder / "ECSSD", 4, 48)
    dense_tasks.make_edges(folder / "BSR", 8, 2, 48)
    make_data(folder / "data")


def classified(folder: Path) -> None:
    """Classified pictures, and weights of the network that the page names."""
    small_classes.write_npz(folder / "CIFAR")
    network = spaces.get("hinge").plain({"arch": "resnet56", "n_class": 10})
    torch.save({"state_dict": network.state_dict()}, folder / "resnet56.th")


def photos(folder: Path) -> None:
    """Folders of pictures, single ones, and small networks under the names of public files."""
    for name in ("photos", "frames", "FOLDER", "t91", "set5"):
        small_pictures.make_folder(folder / name, 4)
    small_pictures.make_folder(folder / "DATA/DIV2K/DIV2K_train_HR", 4)
    for name in ("photo.png", "IN.png"):
        shutil.copy(folder / "photos/0001.png", folder / name)
    torch.save(smsr(scale=2).state_dict(), folder / "smsr_x2.pt")
    layouts = {
        "realesr-general-x4v3": literal_sr.srvgg_layout(4, 8, 4), "spanx2_ch48": literal_sr.span_layout(2, 8, 2),
        "realesr": literal_sr.srvgg_layout(2, 8, 4),
    }  # fmt: skip
    for name, layout in layouts.items():
        torch.save(literal_sr.fill(layout, dtype=torch.float32), folder / f"{name}.pth")


def clouds(folder: Path) -> None:
    """Raw rooms and scans, and prepared ones; a scan, and weights for scans."""
    raw_rooms(folder).rename(folder / "Stanford3dDataset_v1.2_Aligned_Version")
    raw_scans(folder)
    small_clouds.rooms(folder / "S3DIS_ply")
    shutil.copytree(folder / "dataset/sequences", folder / "scans/sequences")
    prepare_semantickitti_scans(folder / "scans", jobs=1)
    shutil.copy(folder / "dataset/sequences/00/velodyne/000000.bin", folder / "scan.bin")
    spaces.get("smpointseg").save(folder / "network.safetensors", point_network(3, 19))


def pairs(folder: Path) -> None:
    """Scenes in every place that the page names, and weights."""
    for name in ("KITTI_2015", "SceneFlow", "."):
        small_pairs.write_scenes(folder / name, 3, 48, 80, 14)
    lines = (folder / "pairs.txt").read_text().splitlines(keepends=True)
    (folder / "train.txt").write_text("".join(lines[:2]))
    (folder / "val.txt").write_text(lines[2])
    for side in ("left", "right"):
        shutil.copy(folder / f"0000_{side}.png", folder / f"{side.upper()}.png")
    torch.manual_seed(0)
    save_smstereo(folder / "FILE.safetensors", SMStereo(maxdisp=16))


WALKS = {
    "docs/getting_started.md": Walk(
        photographs,
        {"prepare.py": ["--expect", "3,2,6"], "--search$": SAMPLED, "--search": [*PIXELS, *MASKS], "train.py": PIXELS},
    ),
    "docs/guides.md": Walk(listed, {"--search": [*PIXELS, *MASKS]}),
    "docs/tasks.md": Walk(
        labelled,
        {"--data_root MSRA": [*PIXELS, *MASKS], "--teacher runs/large": [*PIXELS, *OWN], "name large": [*PIXELS, *OWN],
         "edges": [*PIXELS, "--eval_limit", "1"], "train.py": PIXELS},
    ),
    "docs/specialize.md": Walk(
        lambda folder: None,  # the sample set
        {"--search$": SAMPLED, "train.py": PIXELS,
         "specialize.py": [*SMALL[2:], *STEPS, "--eval_limit", "2", "--rounds", "1", "--max_stride", "8"]},
    ),
    "docs/group_sparsity.md": Walk(
        classified,
        {"--space hinge$": [*GROUPS, "--arch", "resnet8", "--data_root", "CIFAR"], "--search": GROUPS,
         "train.py": CLASSES, "eval.py": ["--rounds", "1"], "prune.py": ["--eval_limit", "10", "--bn_reestimate", "1"]},
    ),
    "docs/super_resolution.md": Walk(
        photos,
        {"--config published": ["--data_range", "1-3/4-4", "--n_feats", "8", "--n_modules", "1", *ENLARGED],
         "--search": ["--n_feats", "8", "--n_modules", "1", *ENLARGED], "train.py": ENLARGED,
         "specialize.py": [*ENLARGED, "--rounds", "0", "--settle", "0.5"], "eval.py": ["--rounds", "1"]},
        {" IN.png ... ": " IN.png "},
    ),
    "docs/point_clouds.md": Walk(
        clouds,
        {"smpointseg$": [*CLOUDS, *NETWORK, "--task", "s3dis", "--data_root", "S3DIS_ply"],
         "semantickitti --data_root": [*CROPS, *STEPS, *NETWORK, "--batch_size", "2", "--lr", "0.01"],
         "--search": [*CLOUDS, *NETWORK], "train.py": CLOUDS, "eval.py --out": ["--rounds", "1"],
         "prepare-points": ["--jobs", "1"]},
        {"sequences_0.06": "scans", " FOLDER ": " Stanford3dDataset_v1.2_Aligned_Version "},
    ),
    "docs/stereo.md": Walk(
        pairs,
        {"smstereo$": [*SCENES, "--maxdisp", "16", "--sample"], "--search": [*SCENES, "--maxdisp", "16"],
         "train.py": SCENES, "eval.py": ["--rounds", "1", "--eval_limit", "1"]},
        {"--weights FILE": "--weights FILE.safetensors"},
    ),
}  # fmt: skip


def claims_of(command: Command) -> list[Claim]:
    return [one for one in CLAIMS if re.match(one.pages, command.page) and re.match(one.commands, command.text)]


def run_here(page: str) -> list[Command]:
    """The commands of a page that no claim has."""
    return [command for command in commands(ROOT / page) if not claims_of(command)]


def newest(text: str) -> str:
    """The command for the newest run that has a network, where it names one."""
    if "runs/NAME" not in text:
        return text
    made = max(Path("runs").glob("*/network.safetensors"), key=lambda path: path.stat().st_mtime)
    return text.replace("runs/NAME", str(made.parent))


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKS)
def test_a_page_s_commands_run(page, tmp_path, monkeypatch, capfd):
    walk = WALKS[page]
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    monkeypatch.setitem(backbones.BUILDERS, "small_pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
    monkeypatch.setattr("sparsemask.datasets.ROOT", tmp_path)  # nothing that lies in this checkout
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    walk.prepare(place)
    known = run_here(page)
    assert known
    with without_images(), backend("reference"):
        for command in known:
            text = command.text
            for name, mine in walk.names.items():
                text = text.replace(name, mine)
            few = next((flags for words, flags in walk.few.items() if re.search(words, text)), [])
            words = [*shlex.split(newest(text)), *few]
            assert run_verb(words) == 0, (shlex.join(words), capfd.readouterr().err)


# ---- nothing is forgotten


def test_every_command_is_run_or_claimed():
    here = {command.text for page in WALKS for command in run_here(page)}
    unknown = [c for c in every_command() if c.page not in WALKS and c.text not in here and not claims_of(c)]
    assert not unknown, f"run them by a walk of this file, or say who does: {unknown}"


def test_every_claim_has_its_commands_and_its_test():
    known = every_command()
    for claim in CLAIMS:
        assert any(claim in claims_of(command) for command in known), claim
        assert bool(claim.why) != bool(claim.test), claim
        if claim.test:
            file, _, name = claim.test.partition("::")
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), claim
    assert all(run_here(page) for page in WALKS)


def test_commands_are_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n    $ python prune/prune.py --thres 0.1    a remark\n    kept: 5\n"
        "    python a.py && make b   # c\n\n"
        "```sh\nsparsemask search --n_class 4 \\\n    --name a\n```\n\n```python\nmake = 3\n```\nmake no command\n"
    )
    monkeypatch.setattr("page_commands.ROOT", tmp_path)
    found = ["python prune/prune.py --thres 0.1", "python a.py", "make b", "sparsemask search --n_class 4 --name a"]
    assert [command.text for command in commands(page)] == found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_are_known(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [command.text for command in commands(page) if not is_known(command)] == []


def test_a_flag_that_is_gone_is_noticed(capfd):
    assert is_known(Command("page.md", "python prune/prune.py --target 0.5 --out groups.npz"))
    assert not is_known(Command("page.md", "python prune/prune.py --tarmac 0.5"))
    assert not is_known(Command("page.md", "sparsemask search --budget_mss 3"))
