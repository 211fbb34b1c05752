"""The native kernels on ARM: cross-compiled, run under emulation on recorded calls, the same numbers as here.

No time is measured: an emulator's means nothing. Where no cross compiler or emulator is, the same replay is compiled
for this machine, by the path that an ARM processor takes (vectors of four floats).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import recorded_calls
from bench.wheels import glibc_of
from literal_sparse import one_thread  # noqa: F401
from sparsemask.backends.native import build
from sparsemask.ops.add_relu import add_relu
from sparsemask.ops.cost_volume import correlation_volume
from sparsemask.spaces.smpointseg import network as networks
from sparsemask.sparse import SparseMaskConv, available_backends, backend
from test_smpointseg import crop, small
from test_sparse_block import attention, block_problem

REASON = available_backends()["native"]
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LAYERS = {
    "3x3": dict(kernel_size=3, channels=(6, 20)),
    "by squares": dict(kernel_size=3, channels=(18, 28)),
    "few outputs": dict(kernel_size=3, channels=(16, 3)),  # as inner products
    "of stride 2": dict(kernel_size=3, stride=2, channels=(5, 9)),
    "transposed": dict(kernel_size=3, stride=2, transposed=True, output_padding=1, channels=(6, 10)),
    "depth-wise": dict(kernel_size=3, groups=12, channels=(12, 12)),
    "grouped": dict(kernel_size=3, groups=2, channels=(8, 12)),
    "a volume": dict(kernel_size=3, dims=3, channels=(4, 8)),
    "points": dict(kernel_size=1, dims=1, channels=(7, 33)),
    "leaky": dict(kernel_size=5, activation="leaky_relu:0.1", channels=(3, 24), bias=True),
}

pytestmark = pytest.mark.skipif(REASON is not None, reason=f"nothing to record: {REASON}")


@pytest.fixture(scope="module")
def recorded() -> list[recorded_calls.Recorded]:
    """What layers, blocks, point networks with gradients and cost volumes call, with results computed here."""
    torch.set_num_threads(1)
    assert available_backends()["native"] is None  # checked now, not while calls are recorded
    with recorded_calls.recording() as calls, backend("native"):
        torch.manual_seed(0)
        with torch.no_grad():
            for options in LAYERS.values():
                layer(**options)
            for more in (dict(dense=("random", "one", "none")), dict(spatial=(3, 4, 3))):
                given = block_problem(**more)
                torch.ops.sparsemask.block(*given, "relu", "native")
                torch.ops.sparsemask.attended_block(*given, attention(6), "relu", "native")
            features = torch.randn(2, 1, 24, 3, 9)
            correlation_volume(*features, levels=4, groups=6)
            a, b = (torch.randn(1, 5, 3, 4, 2).contiguous(memory_format=torch.channels_last_3d) for _ in range(2))
            specialised()
            add_relu(a, b, torch.rand(1, 1, 3, 4, 2) < 0.5, torch.arange(5) < 2)
        points = small()
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(networks, "whole", lambda *_: None)  # block by block: it calls the same kernels
            points(crop())
        points.train()(crop(samples=2)).square().mean().backward()
    return calls


def specialised() -> None:
    """Parts of a specialised network: a stage, an inverted residual of either stride, and where they compute."""
    last = lambda *size: torch.randn(*size).contiguous(memory_format=torch.channels_last)
    sizes = [last(2, channels, *size) for channels, size in ((5, (5, 7)), (6, (3, 4)), (7, (1, 1)))]
    weights = [torch.randn(9, one.shape[1], 1, 1) for one in sizes]
    mask, cut = torch.rand(2, 1, 5, 7) < 0.5, [True, False, True]
    torch.ops.sparsemask.fuse_scales(sizes, weights, cut, torch.randn(9), mask, 4, 5, 7, "native")
    flags = [torch.rand(n) < 0.5 for n in (20, 20, 6)]
    for stride in (1, 2):
        final = torch.randn(5, 2, 3, 3) if stride == 1 else torch.randn(2, 5, 1, 1)
        branch = [
            torch.randn(5, 6, 1, 1),
            torch.randn(5),
            torch.randn(5, 5, 3, 3),
            torch.randn(5),
            final,
            torch.randn(2),
        ]
        x = last(2, 6, 7, 5)
        kept = torch.ops.sparsemask.locate(x, *branch, 0.5, stride == 1, "native")
        torch.ops.sparsemask.inverted_residual(
            x, kept, torch.randn(20, 6, 1, 1), torch.randn(20), flags[0], torch.randn(20, 1, 3, 3), torch.randn(20),
            flags[1], torch.randn(6, 20, 1, 1), torch.randn(6), flags[2], stride, stride == 1, "native",
        )  # fmt: skip


def layer(kernel_size: int, channels: tuple[int, int], dims: int = 2, **options) -> None:
    """One layer on noise, some of it dropped; sizes are odd."""
    made = SparseMaskConv(*channels, kernel_size, dims=dims, **options).eval()
    x = torch.randn(2, channels[0], *(7, 5, 3)[:dims])
    mask = torch.rand(2, 1, *made.geometry.output_size(x.shape[2:])) < 0.5
    made(x, mask, torch.arange(channels[0]) % 2 == 0, torch.arange(channels[1]) % 3 == 0)


def compile_replay(cxx: str, machine: str, folder: Path, names: set[str]) -> Path:
    """The replaying program of a processor family, by the project's own compiler calls; libraries inside it."""
    (folder / "entries.inc").write_text("".join(f"SM_ENTRY({name})\n" for name in sorted(names)))
    calls = build.commands([cxx], folder / "libsparsemask.so", machine)
    objects = [call[-1] for call in calls if "-c" in call]
    source = Path(__file__).with_name("replay.cpp")
    calls.append([cxx, "-O1", "-std=c++17", "-fopenmp", "-static", f"-I{folder}", str(source), *objects, "-o",
                  str(folder / "replay")])  # fmt: skip
    for call in calls:
        done = subprocess.run(call, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:2000]
    return folder / "replay"


@pytest.fixture(scope="module")
def arm(recorded, tmp_path_factory) -> Path:
    """The program for ARM, beside the objects it is made of."""
    for tool in (CROSS, EMULATOR, "aarch64-linux-gnu-objdump"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not here: apt-get install g++-aarch64-linux-gnu qemu-user")
    return compile_replay(CROSS, "aarch64", tmp_path_factory.mktemp("arm"), {one.name for one in recorded})


def replay(command: list[str], calls: list[recorded_calls.Recorded], folder: Path) -> None:
    recorded_calls.write(folder / "calls", calls)
    done = subprocess.run([*command, str(folder / "calls"), str(folder / "answers")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recorded_calls.check(folder / "answers", calls, 2e-5)


def test_every_entry_that_computes_is_recorded(recorded):
    source = "".join(one.read_text() for one in build.SOURCES.iterdir())
    entries = set(re.findall(r"^(?:extern \"C\" )?(?:void|int64_t) (sm_\w+)\([^;]*?\) {", source, re.MULTILINE))
    entries -= {"sm_chain", "sm_point_network"}  # call others in turn
    # Not asked of a processor without x86's instructions; tests/kernel_sweeps.py puts them over emulated ones.
    entries -= {"sm_tiles", "sm_pack_tiles", "sm_tile_product", "sm_byte_product", "sm_range", "sm_to_int8"}
    assert {one.name for one in recorded} == entries - set(recorded_calls.SILENT)


@pytest.mark.slow
def test_arm_gives_the_same_numbers(recorded, arm, tmp_path):
    replay([EMULATOR, str(arm)], recorded, tmp_path)


def test_arm_multiplies_vectors(arm):
    # The compiler turns the generic vectors into NEON's by itself; without them the kernels would be useless there.
    listing = subprocess.run(["aarch64-linux-gnu-objdump", "-d", str(arm.parent / "sm_plain.o")],
                             capture_output=True, text=True, check=True).stdout  # fmt: skip
    found = dict.fromkeys(("columns", "narrow", "depthwise", "point_rows", "correlate"), 0)
    for part in re.split(r"^[0-9a-f]+ <", listing, flags=re.MULTILINE)[1:]:
        for entry in found:
            if entry in part.split(">")[0]:
                found[entry] += len(re.findall(r"\bfmla\s+v\d+\.4s", part))
    # A block of 4 rows times 4 vectors is 16 of them, one of 6 times 2 is 12, and no fewer.
    assert found["columns"] >= 28 and found["narrow"] >= 16 and all(found.values()), found


@pytest.mark.slow
def test_the_library_of_an_arm_wheel_gives_the_same_numbers(recorded, arm, tmp_path):
    # As it ships: linked without a runtime of OpenMP, which the program that loads it has.
    root, library = Path("/usr/aarch64-linux-gnu"), build.ship(tmp_path / "shipped", [CROSS], "aarch64")
    assert glibc_of(library) <= (2, 28)  # the oldest that torch runs on
    source, program = Path(__file__).with_name("replay.cpp"), tmp_path / "replay"
    call = [CROSS, "-O1", "-std=c++17", "-fopenmp", f"-I{arm.parent}", str(source), str(library), "-o", str(program)]
    subprocess.run([*call, f"-Wl,-rpath,{library.parent}"], check=True)
    replay([EMULATOR, "-L", str(root), str(program)], recorded, tmp_path)


def test_a_wrong_number_is_noticed(recorded):
    # The comparison itself can fail: one float of one product is changed.
    call = next(one for one in recorded if one.name == "sm_product")
    answers = [bytearray(one.after) for one in call.memory]
    at = next(i for i, one in enumerate(call.memory) if one.kind.kind == "f" and one.before != one.after)
    first = next(
        i for i, (a, b) in enumerate(zip(call.memory[at].before, call.memory[at].after, strict=True)) if a != b
    )
    first = first // 4 * 4
    answers[at][first : first + 4] = b"\x00\x00\xc8\x42"  # 100
    with pytest.raises(AssertionError, match="sm_product"):
        call.check(call.answer or 0, [bytes(one) for one in answers], 2e-5)


@pytest.mark.slow
def test_the_plain_path_of_this_machine_gives_the_same_numbers(recorded, tmp_path):
    # What ARM takes, on any machine: one part of vectors of four floats, built as for a processor family of no name.
    if shutil.which(CROSS) and shutil.which(EMULATOR):
        pytest.skip("ARM itself is replayed")
    program = compile_replay(build.compiler()[0], "unknown", tmp_path, {one.name for one in recorded})
    replay([str(program)], recorded, tmp_path)
