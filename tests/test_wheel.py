"""What an installation is: one name in site-packages, beside packages that have names which a checkout uses too."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from bench import wheels as making
from bench.wheels import FOLDERS, copy_source
from sparsemask.backends.native import build as kernels
from sparsemask.errors import UseError
from tiny import ROOT, SMALL, data_flags, make_data
from wheels import bare, build, install, make_environment, run


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return copy_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The Python of an environment in which the wheel is installed."""
    made = make_environment(tmp_path_factory.mktemp("environment") / "env")
    install(made, str(wheel))
    return made


WHERE = """
import search, spaces
assert search.STANDIN and spaces.STANDIN
import sparsemask.search.losses, sparsemask.spaces, sparsemask.VOC12.lists
from sparsemask.prune.connectivity import prune_connectivity
from sparsemask.search.losses import sparse_loss
from sparsemask.spaces.connectivity import FullyDenseNetwork, PrunedNetwork
from sparsemask.spaces.sparse_conv import SMPointSeg, load_smsr
assert len(sparsemask.spaces.available()) > 5 and spaces.STANDIN
print(sparsemask.__file__, sparsemask.spaces.__file__, sep="\\n")
"""


def test_a_wheel_has_one_name_at_its_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"sparsemask"}
    ours = {path.relative_to(ROOT) for top in FOLDERS for path in (ROOT / top).rglob("*.py")}
    wanted = {str(path) if path.parts[0] == "sparsemask" else f"sparsemask/{path}" for path in ours}
    assert {name for name in names if name.endswith(".py")} == wanted
    assert "sparsemask/py.typed" in names
    data = [path.relative_to(ROOT) for path in (ROOT / "sparsemask").rglob("*") if path.suffix in DATA]
    assert data and {str(path) for path in data} <= set(names)


DATA = (".yaml", ".css", ".js", ".cpp", ".h", ".safetensors", ".md")


def test_a_compiler_that_is_not_there_is_said_before_anything_is_built(tmp_path, capsys):
    assert making.main(["--out", str(tmp_path / "dist"), "--cross", "aarch64=no-such-compiler"]) == 2
    assert "--cross aarch64=no-such-compiler: MACHINE=CXX" in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()


@pytest.mark.slow
def test_the_commands_of_a_wheel_run_beside_packages_of_the_same_names(python, tmp_path):
    toolkit, spaces = map(Path, run([python, "-c", WHERE], tmp_path).split())
    assert spaces.is_relative_to(toolkit.parent) and toolkit.is_relative_to(python.parents[1])
    command = python.with_name("sparsemask")
    assert run([command, "--version"], tmp_path).startswith("sparsemask ")

    # One trial of a study is a search, a pruning and a retraining, in a process that the command starts.
    few = ["--trials", "1", "--max_iter", "2", "--retrain_iter", "2", "--hopeless", "0"]
    run([command, "study", "--study", "t", *few, *data_flags(make_data(tmp_path / "data")), *SMALL], tmp_path)
    retrained = next((tmp_path / "runs" / "t").glob("trial-*/retrain"))
    said = run([command, "eval", "--run", retrained], tmp_path)
    assert "mIoU" in said or "miou" in said


@pytest.mark.slow
def test_an_editable_installation_runs_beside_packages_of_the_same_names(source, tmp_path):
    python = make_environment(tmp_path / "env")
    install(python, "--no-build-isolation", "-e", str(source))
    toolkit, spaces = map(Path, run([python, "-c", WHERE], tmp_path).split())
    assert toolkit.is_relative_to(source) and spaces == source / "spaces" / "__init__.py"
    assert run([python.with_name("sparsemask"), "--version"], tmp_path).startswith("sparsemask ")
    assert "usage: python search/run.py" in run([python, source / "search" / "run.py", "--help"], tmp_path)


# ---- wheels of a platform


def compiler() -> list[str]:
    try:
        return kernels.compiler()
    except kernels.NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ready(wheel, tmp_path_factory) -> Path:
    """The Python of an environment in which the wheel with compiled kernels is installed."""
    cxx = compiler()
    if not shutil.which("readelf"):
        pytest.skip("readelf is not here (binutils)")
    pure = Path(shutil.copy(wheel, tmp_path_factory.mktemp("platform")))
    made = make_environment(tmp_path_factory.mktemp("environment") / "env")
    install(made, str(making.platform_wheel(pure, platform.machine(), cxx)))
    return made


WITHOUT_COMPILER = """
import sys, torch, sparsemask
from sparsemask.backends.native import build
from sparsemask.sparse import SparseMaskConv, available_backends, backend
try:
    build.compiler()
except build.NoCompiler:
    pass
else:
    sys.exit("there is a compiler")
torch.manual_seed(0)
layer = SparseMaskConv(5, 20, 3, padding=1).eval()
given = torch.randn(1, 5, 9, 11), torch.rand(1, 1, 9, 11) < 0.5, torch.arange(5) % 2 == 0, torch.arange(20) % 3 == 0
answers = []
for name in ("native", "reference"):
    if available_backends()[name] is None:
        with backend(name), torch.no_grad():
            answers.append(layer(*given))
if len(answers) == 2:
    torch.testing.assert_close(*answers)
print(available_backends()["native"])
maps = open("/proc/self/maps").read()
print(len({line.split()[-1] for line in maps.splitlines() if "libgomp" in line}))
print(*{line.split()[-1] for line in maps.splitlines() if "libsparsemask" in line})
"""


def alone(python: Path, code: str, folder: Path) -> subprocess.CompletedProcess:
    """Python code in an environment without a compiler and without kernels that were built before."""
    home = folder / "nothing"
    home.mkdir(exist_ok=True)
    more = {"PATH": str(python.parent), "SPARSEMASK_HOME": str(home), "CXX": ""}
    done = subprocess.run(
        [python, "-c", code], cwd=folder, env=bare(folder / "home", **more), capture_output=True, text=True
    )
    assert done.returncode == 0 and not list(home.rglob("*.so")), done.stderr
    return done


@pytest.mark.slow
def test_a_wheel_with_kernels_needs_no_compiler(ready, tmp_path):
    done = alone(ready, WITHOUT_COMPILER, tmp_path)
    reason, runtimes, library = done.stdout.splitlines()
    assert (reason, runtimes) == ("None", "1"), done.stderr  # the OpenMP of torch alone
    assert Path(library).is_relative_to(ready.parents[1]) and not done.stderr
    # That they compute rightly here is remembered in the cache, not in the package.
    assert list((tmp_path / "nothing" / "kernels").glob("checked-*.json"))
    assert sorted(path.name for path in Path(library).parent.iterdir()) == ["libsparsemask.json", "libsparsemask.so"]
    said = alone(ready, "import sys; from sparsemask.cli.doctor import main; main([])", tmp_path).stdout
    assert "of this wheel, for " in said and "no C++ compiler" not in said


@pytest.mark.slow
def test_damaged_kernels_of_a_wheel_are_not_loaded(ready, tmp_path):
    library = next(ready.parents[1].rglob("shipped/libsparsemask.so"))
    whole = library.read_bytes()
    try:
        library.write_bytes(whole[: len(whole) // 2])
        done = alone(ready, WITHOUT_COMPILER, tmp_path)
    finally:
        library.write_bytes(whole)
    assert "libsparsemask.so is damaged): building them" in done.stderr
    assert "no C++ compiler found" in done.stdout.splitlines()[0]


def test_a_pure_wheel_computes_without_a_compiler(python, tmp_path):
    done = alone(python, WITHOUT_COMPILER, tmp_path)
    assert "no C++ compiler found" in done.stdout.splitlines()[0]


def test_the_tag_is_what_the_symbols_say(tmp_path):
    cxx = compiler()[0]
    if not shutil.which("readelf"):
        pytest.skip("readelf is not here (binutils)")

    def made(name: str, code: str, *flags: str) -> Path:
        (tmp_path / f"{name}.cpp").write_text(code)
        call = [cxx, "-shared", "-fPIC", str(tmp_path / f"{name}.cpp"), "-o", str(tmp_path / f"{name}.so"), *flags]
        subprocess.run(call, check=True)
        return tmp_path / f"{name}.so"

    assert making.glibc_of(made("old", "int f() { return 1; }")) == (2, 17)
    newer = made("new", "#include <unistd.h>\nint f() { return gettid(); }")
    assert making.glibc_of(newer) == (2, 30)  # which brought that function
    with pytest.raises(UseError, match="needs libgomp"):
        making.glibc_of(made("threads", "#include <omp.h>\nint f() { return omp_get_num_threads(); }", "-fopenmp"))


def test_the_source_distribution_makes_the_same_wheel(source, wheel, tmp_path):
    packed = making.built("sdist", source, tmp_path)
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (tmp_path / "again").mkdir()
    again = making.built("wheel", folder, tmp_path / "again")
    names = [sorted(zipfile.ZipFile(path).namelist()) for path in (wheel, again)]
    assert names[0] == names[1]
    assert not [name for name in names[0] if "shipped" in name]  # what a wheel of a platform alone has
