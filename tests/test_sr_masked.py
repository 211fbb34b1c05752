"""Super-resolution networks with masks: in tiles, within a memory, as programs, compiled."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sparsemask
from small_pictures import scene
from sparsemask import exporting, spaces
from sparsemask.cli import upscale
from sparsemask.errors import UseError
from sparsemask.exporting.validation import opened
from sparsemask.spaces import sr_networks
from sparsemask.spaces.sr_networks.masked import upscale_masked
from sparsemask.spaces.sr_networks.space import space
from sparsemask.spaces.sr_networks.tiles import _spans
from sparsemask.sparse import backend
from test_sparsify import half
from tiny import fails

KINDS = {
    "SRVGGNetCompact": lambda: sr_networks.SRVGGNetCompact(2, 16, 8),
    "SPAN": lambda: sr_networks.SPAN(3, 16, 3, folded=True),
    "EDSR": lambda: sr_networks.EDSR(2, 16, 2),
    "RLFN": lambda: sr_networks.RLFN(2, 16, 2),
    "PLKSR": lambda: sr_networks.PLKSR(3, 16, 2, 5, 4),
}


# Tracing takes seconds, and these two bring no operator that the others have not.
TRACED = [pytest.param(name, marks=[pytest.mark.slow] if name in ("RLFN", "PLKSR") else []) for name in KINDS]


@pytest.fixture(autouse=True)
def one_backend():
    """Tiles and wholes by the same arithmetic."""
    with backend("reference"):
        yield


def masked(name: str):
    torch.manual_seed(0)
    return half(spaces.get("sr").build(_state(KINDS[name]()), name))


def _state(dense) -> dict:
    dense.eval()
    from sparsemask.spaces.sr_networks.space import _sparsified

    return _sparsified(dense).state_dict()


def image(height: int, width: int) -> torch.Tensor:
    pixels = scene(3, (height, width))
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(96, 130), (81, 75)])
@torch.no_grad()
def test_tiles_are_the_whole(name, size):
    """Output, masks and kept fractions; sides that tiles do not divide, and odd ones."""
    network, x = masked(name), image(*size)
    wanted = network(x)
    masks, kept = [mask.clone() for mask in network.masks], [part.clone() for part in network.kept]
    assert any(0.05 < float(mask.float().mean()) < 0.95 for mask in masks)
    got = upscale_masked(network, x, tile=33)  # in tiles of 32: masks live on every other pixel
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert all(torch.equal(one, other) for one, other in zip(network.masks, masks, strict=True))
    torch.testing.assert_close(network.kept, kept)


@torch.no_grad()
def test_a_memory_is_met_by_tiles():
    from sparsemask.spaces.sr_networks.masked import MaskedEnlargement
    from sparsemask.spaces.sr_networks.tiles import planned, resident

    network = MaskedEnlargement(masked("SRVGGNetCompact"))
    whole = planned(network, (1, 3, 600, 800), resident() + 4e9)
    assert whole.tile == 0
    less = planned(network, (1, 3, 600, 800), resident() + 0.3 * whole.need)
    assert 32 <= less.tile < 800 and less.tile % 2 == 0 and less.need <= 0.3 * whole.need
    with pytest.raises(UseError, match="with masks: about"):
        planned(network, (1, 3, 600, 800), resident() + 1e6)


@torch.no_grad()
def test_a_memory_is_met_by_bands():
    from sparsemask.spaces.sr_networks.masked import StagedEnlargement
    from sparsemask.spaces.sr_networks.tiles import planned, resident

    network = masked("RLFN")
    whole = planned(StagedEnlargement(network), (1, 3, 600, 800), resident() + 4e9)
    less = planned(StagedEnlargement(network), (1, 3, 600, 800), resident() + 0.3 * whole.need)
    assert whole.tile == 0 and 8 <= less.tile < 600 and less.need <= 0.3 * whole.need
    assert not network.masks  # counting leaves nothing behind


@pytest.mark.parametrize("name", KINDS)
def test_from_sparsify_to_an_enlarged_picture(name, tmp_path, monkeypatch):
    """What every architecture promises: masks by `sparsify`, a file, the file read, tiles, a program, a picture."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    dense = KINDS[name]().eval()
    word = {"dense": json.dumps({"architecture": dense.architecture, **dense.config})}
    network = sparsemask.sparsify(dense, image(48, 48), keep=0.8, steps=2, config=word)
    space.save("net.safetensors", network)
    again = spaces.get("sr").load("net.safetensors").network
    x = image(66, 50)
    with torch.no_grad():
        wanted = network(x)
        tolerance = {"rtol": 0, "atol": 1e-5 * float(wanted.abs().max())}
        torch.testing.assert_close(again(x), wanted, **tolerance)
        torch.testing.assert_close(upscale_masked(again, x, tile=32), wanted, **tolerance)
    form = space.exportable(again, None, {}).fixed(x)
    run, _ = opened(exporting.export_program(form, tmp_path / "net.pt2", {"space": "sr"}), form)
    torch.testing.assert_close(run(x), wanted, **tolerance)
    Image.fromarray(x[0].permute(1, 2, 0).byte().numpy()).save("in.png")
    assert upscale.main(["in.png", "out.png", "--weights", "net.safetensors", "--tile", "32"]) == 0
    pixels = wanted[0].clamp(0, 255).round().permute(1, 2, 0).numpy()
    assert np.abs(np.array(Image.open("out.png")).astype(int) - pixels).max() <= 1


def test_by_the_command(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    network = masked("SRVGGNetCompact")
    space.save("net.safetensors", network)
    Image.fromarray(scene(7, (90, 70))).save("in.png")
    for out, more in (("a.png", []), ("b.png", ["--tile", "32", "--show-masks", "m"]), ("c.png", ["--memory", "3G"])):
        assert upscale.main(["in.png", out, "--weights", "net.safetensors", *more]) == 0
    assert "computed " in capfd.readouterr().out
    images = [np.array(Image.open(name)).astype(int) for name in ("a.png", "b.png", "c.png")]
    assert all(np.abs(one - images[0]).max() <= 1 for one in images) and images[0].shape == (180, 140, 3)
    assert Image.open("m/in_module1.png").size == (70, 90)
    fails(capfd, upscale.main, ["in.png", "d.png", "--weights", "net.safetensors", "--tile", "5"], ["tiles of 5"])


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@torch.no_grad()
def test_programs_are_the_network(name, suffix, tmp_path):
    """Of other sizes than the one that was traced, too; the torch program holds the operator that skips."""
    if reason := exporting.why_not(suffix):
        pytest.skip(reason)
    network = masked(name)
    form = space.exportable(network, None, {})
    path = tmp_path / f"net{suffix}"
    {".pt2": exporting.export_program, ".onnx": exporting.export_onnx}[suffix](form, path, {"space": "sr"})
    if suffix == ".pt2":
        graph = torch.export.load(path).graph
        assert [node for node in graph.nodes if "sparsemask.conv" in str(node.target)]
    run, _ = opened(path, form)
    for size in ((64, 96), (38, 52)):
        x, wanted = image(*size), network(image(*size))
        got = run(x)
        torch.testing.assert_close(torch.as_tensor(got), wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", TRACED)
@torch.no_grad()
def test_compiled_it_is_the_network(name):
    network, x = masked(name), image(40, 52)
    wanted = network(x)
    torch._dynamo.reset()
    got = torch.compile(network, backend="aot_eager")(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_constants_of_the_trace_go_with_the_network(name):
    """A picture's memory is reckoned on the network without contents, as any device has it."""
    network = masked(name)
    assert network.to("meta")(torch.empty(1, 3, 48, 48, device="meta")).device.type == "meta"


@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("length", [1, 63, 64, 100, 129, 1080])
def test_windows_cover_all_and_are_of_one_size(length, multiple):
    spans = list(_spans(length, 64, 6, multiple))
    kept = [index for span in spans for index in range(span.kept.start, span.kept.stop)]
    assert kept == list(range(length))
    sizes = {span.outer.stop - span.outer.start for span in spans}
    assert max(sizes) - min(sizes) < multiple and max(sizes) <= min(length, 64 + 2 * 6) + multiple - 1
    for span in spans:
        assert span.kept.start % multiple == span.outer.start % multiple == 0
        assert span.inner.start == span.kept.start - span.outer.start
        assert span.outer.start <= max(0, span.kept.start - 6)
        assert span.outer.stop >= min(length, span.kept.stop + 6)
