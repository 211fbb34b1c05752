"""sparsemask serve: a page that takes pictures of strangers, and says what is wrong with them in one line."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from devtools import Page
from small_pictures import scene
from sparsemask import models
from sparsemask.cli import upscale
from sparsemask.cli.main import main
from sparsemask.cli.serving import command, networks
from sparsemask.cli.serving.server import Server
from sparsemask.errors import UseError
from sparsemask.pictures.overlay import heat
from sparsemask.prediction import Description, Predictor
from sparsemask.spaces.sparse_conv import save_smsr
from test_report_browser import BROWSERS
from test_smsr import network
from tiny import ROOT, environment, fails, interruptible

OPTIONS = Namespace(gpu=-1, backend="reference", pixels=4000)
LARGEST = 30_000


class Brightness(nn.Module):
    """Two classes: dark and bright."""

    def forward(self, images):
        grey = images.mean(1, keepdim=True)
        return torch.cat([-grey, grey], 1)


class Broken(networks.Segmenting):
    """A network that fails."""

    def __init__(self):
        self.name = "broken"

    def compute(self, data):
        raise ZeroDivisionError


def brightness() -> networks.Segmenting:
    described = Description(("dark", "bright"), palette=np.array([[10, 20, 30], [200, 100, 0]], np.uint8))
    return networks.Segmenting(Predictor(Brightness(), described), "brightness")


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "smsr_x2.safetensors"
    save_smsr(path, network(scale=2))
    return path


@pytest.fixture(scope="module")
def server(masked):
    """Networks of every kind on a port that is free."""
    offered = [networks.open_network("compact-x2", OPTIONS), networks.open_network(str(masked), OPTIONS)]
    with Server(("127.0.0.1", 0), [*offered, brightness(), Broken()], LARGEST) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, method="POST", path="/compute", body=None, **headers):
    """(status, headers, body) of one request; header names have _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    done = reply.status, reply.headers, reply.read()
    connection.close()
    return done


def file_of(pixels: np.ndarray, form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def picture(shown: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["data"]))))


PICTURE = scene(1, (20, 32))


# ---- what is answered


def test_a_picture_is_enlarged_as_the_command_does(server, tmp_path):
    status, headers, body = ask(server, body=file_of(PICTURE))
    answer = json.loads(body)
    assert status == 200 and headers["Content-Type"] == "application/json"
    assert answer["size"] == [32, 20] and answer["masks"] == [] and answer["times"]["network"] > 0
    np.testing.assert_array_equal(picture(answer["before"]), PICTURE)
    (tmp_path / "in.png").write_bytes(file_of(PICTURE))
    argv = [str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--weights", "compact-x2", "--gpu", "-1"]
    assert upscale.main([*argv, "--backend", "reference"]) == 0
    np.testing.assert_array_equal(picture(answer["after"]), np.asarray(Image.open(tmp_path / "out.png")))


def test_masks_are_shown_and_both_forms_timed(server):
    answer = json.loads(ask(server, path="/compute?network=1", body=file_of(PICTURE))[2])
    assert set(answer["times"]) == {"with masks", "without masks"}
    first, *modules = answer["masks"]
    assert len(modules) == server.networks[1].enlarger.network.n_modules
    masks = server.networks[1].enlarger.locations()
    np.testing.assert_array_equal(picture(first), heat(PICTURE, masks))
    assert "% of locations" in modules[0]["label"] and answer["facts"]["locations computed"].endswith("%")


def test_classes_have_colours_and_shares(server):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, 15:] = 255
    answer = json.loads(ask(server, path="/compute?network=2", body=file_of(pixels))[2])
    assert answer["classes"] == [
        {"name": "dark", "colour": [10, 20, 30], "share": 0.75},
        {"name": "bright", "colour": [200, 100, 0], "share": 0.25},
    ]
    assert picture(answer["after"]).shape == pixels.shape and answer["facts"]["classes"] == "2 of 2"


def test_a_large_photograph_is_reduced_for_its_classes(server, monkeypatch):
    monkeypatch.setattr(networks, "LONGEST", 30)
    answer = json.loads(ask(server, path="/compute?network=2", body=file_of(PICTURE.repeat(3, 0).repeat(3, 1)))[2])
    assert answer["size"] == [30, 19] and "96x60" in answer["notes"][0]


def test_the_page_carries_everything(server):
    status, headers, body = ask(server, "GET", "/")
    text = body.decode()
    assert status == 200 and all(name in text for name in ("compact-x2", "smsr_x2.safetensors", "brightness"))
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(r"(?:src|href)=\"(?!data:)[^\"]", text) and "http:" not in text and "@import" not in text
    status, headers, body = ask(server, "HEAD", "/")
    assert status == 200 and body == b"" and int(headers["Content-Length"]) == len(text.encode())


# ---- what is refused


def claiming(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header claims a size."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
# status, what is sent, words of the one line
BAD = {
    "unknown address": (404, {"method": "GET", "path": "/etc/passwd"}, "no such address"),
    "no picture to read here": (404, {"method": "GET", "path": "/compute/../x.png"}, "no such address"),
    "wrong method": (405, {"method": "GET"}, "takes POST"),
    "page posted": (405, {"path": "/", "body": b"x"}, "takes GET"),
    "deleted": (405, {"method": "DELETE", "path": "/"}, "takes GET"),
    "unknown method": (501, {"method": "BREW", "path": "/"}, "not implemented"),
    "too large": (413, {"body": bytes(LARGEST + 1)}, "larger than 0.03 MB"),
    "claims to be huge": (413, {"body": b"", "Content_Length": "9" * 30}, "larger than"),
    "not a picture": (415, {"body": b"<html>hello</html>"}, "not readable as a picture"),
    "a program's picture": (415, {"body": POSTSCRIPT}, "not readable as a picture"),
    "cut off": (415, {"body": file_of(PICTURE)[:300]}, "picture"),
    "many pixels": (413, {"body": claiming(3000, 3000)}, "3000x3000"),
    "a bomb": (415, {"body": claiming(60000, 60000)}, "not readable as a picture"),
    "empty": (400, {"body": b""}, "no picture"),
    "in parts": (411, {"body": iter([b"abc"])}, "Content-Length"),
    "negative": (411, {"body": b"", "Content_Length": "-1"}, "Content-Length"),
    "no such network": (400, {"path": "/compute?network=9", "body": b"x"}, "0 to 3"),
    "a network's name": (400, {"path": "/compute?network=../../x", "body": b"x"}, "0 to 3"),
    "odd name": (400, {"method": "GET", "path": "/", "Host": "["}, "cannot be read"),
    "many words": (400, {"path": "/compute?" + "network=0&" * 50, "body": b"x"}, "cannot be read"),
    "another page": (403, {"body": file_of(PICTURE), "Origin": "http://elsewhere.example"}, "this page alone"),
    "another name": (403, {"method": "GET", "path": "/", "Host": "elsewhere.example"}, "the terminal says"),
    "a network that fails": (500, {"path": "/compute?network=3", "body": file_of(PICTURE)}, "network failed"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_one_line(server, kind, capfd):
    wanted, request, words = BAD[kind]
    status, headers, body = ask(server, **request)
    said = json.loads(body)["error"]
    assert status == wanted and words in said and "\n" not in said, said
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ("Traceback" in capfd.readouterr().err) == (status == 500)
    if status == 405:
        assert headers["Allow"]
    assert ask(server, "GET", "/")[0] == 200  # and it goes on


def test_bodies_are_refused_before_they_are_sent(server):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as client:
        client.sendall(b"POST /compute HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.0 413 ")


def test_a_body_that_ends_early(server):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as client:
        client.sendall(b"POST /compute HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\nabc")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000).startswith(b"HTTP/1.0 400 ")


def test_pictures_are_computed_one_at_a_time_and_few_wait(server, monkeypatch):
    begun, go, inside, most = threading.Event(), threading.Event(), [0], [0]
    network, answer = server.networks[2], server.networks[2].compute

    def slowly(data):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        begun.set()
        assert go.wait(30)
        done = answer(data)
        inside[0] -= 1
        return done

    monkeypatch.setattr(network, "compute", slowly)
    statuses: list[int] = []
    send = lambda: statuses.append(ask(server, path="/compute?network=2", body=file_of(PICTURE))[0])
    waiting = [threading.Thread(target=send) for _ in range(4)]
    for thread in waiting:
        thread.start()
    assert begun.wait(30)
    while server.pictures._value:  # until all four are in
        pass
    status, headers, _ = ask(server, path="/compute?network=2", body=file_of(PICTURE))
    assert status == 503 and headers["Retry-After"]
    go.set()
    for thread in waiting:
        thread.join()
    assert statuses == [200] * 4 and most == [1]


# ---- the command


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["galaxy"], ["unknown model 'galaxy'", "compact-x2"]),
        (["none/net.onnx"], ["none/net.onnx: no such file or run"]),
        (["compact-x2", "--port", "70000"], ["--port 70000", "0 to 65535"]),
        (["compact-x2", "--host", "203.0.113.7"], ["--host 203.0.113.7"]),
    ],
)
def test_bad_commands_are_one_line(capfd, argv, words):
    fails(capfd, command.main, argv, words)


def test_a_port_in_use_is_one_line(server, capfd):
    fails(capfd, command.main, ["compact-x2", "--port", str(server.server_port)], ["is in use", "--port 0"])


def test_all_that_ship_are_offered_and_the_verb_is_known(monkeypatch, capfd):
    monkeypatch.setattr(Server, "serve_forever", lambda self: print([network.name for network in self.networks]))
    assert main(["serve", "--port", "0", "--gpu", "-1"]) == 0
    said = capfd.readouterr().out
    assert all(f"'{name} (enlarges" in said for name in models.available(["super_resolution"]))
    assert all(f"'{name} (21 classes" in said for name in models.available(["segmentation"]))
    assert "rooms" not in said  # points are no picture
    assert re.search(r"open http://127\.0\.0\.1:\d+ in a browser", said)


def test_networks_that_the_page_does_not_show(tmp_path):
    bad = tmp_path / "weights.pth"
    torch.save({"some.weight": torch.zeros(3)}, bad)
    with pytest.raises(UseError, match="weights.pth"):
        networks.open_network(str(bad), OPTIONS)


class Slow(networks.Served):
    """Stands for a network that is still computing when the server is ended."""

    def __init__(self, started: threading.Event):
        self.name, self.most, self.started = "slow", 10**6, started

    def compute(self, data):
        self.started.set()
        time.sleep(0.5)
        raise UseError("computed to its end")


def test_what_is_being_answered_at_the_end_is_answered(monkeypatch):
    started, replies = threading.Event(), []

    def interrupted(_: Server) -> None:
        asking.start()
        accept = threading.Thread(target=lambda: [made.handle_request() for _ in range(2)])
        accept.start()
        assert started.wait(20)
        accept.join(20)
        raise KeyboardInterrupt

    with Server(("127.0.0.1", 0), [Slow(started)], LARGEST) as made:
        asking = threading.Thread(target=lambda: replies.append(ask(made, body=file_of(PICTURE))))
        monkeypatch.setattr(Server, "serve_forever", interrupted)
        before = threading.active_count()
        with socket.create_connection(("127.0.0.1", made.server_port), timeout=5) as silent:
            made.serve()
            assert silent.recv(1) == b""  # its thread did not wait for it
        asking.join(20)
    assert "computed to its end" in replies[0][2].decode()
    assert threading.active_count() == before


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal of POSIX here")
def test_ctrl_c_ends_it(tmp_path):
    words = [sys.executable, "-m", "sparsemask.cli", "serve", "compact-x2", "--port", "0", "--gpu", "-1"]
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=interruptible,
    )  # fmt: skip
    try:
        lines = iter(process.stdout.readline, "")
        address = next(found[1] for line in lines if (found := re.search(r"http://127.0.0.1:(\d+)", line)))
        with socket.create_connection(("127.0.0.1", int(address)), timeout=20):  # a client that says nothing
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
        assert process.returncode == 0 and error.strip() == "stopped"
    finally:
        process.kill()
        process.wait()


# ---- the drawing


def test_heat_says_how_many_modules_compute():
    image = np.full((4, 8, 3), 100, np.uint8)
    left = np.zeros((4, 8), bool)
    left[:, :4] = True
    drawn = heat(image, [np.ones((2, 4), bool), left])
    assert drawn.shape == image.shape and drawn[0, 0].sum() > drawn[0, 7].sum() > heat(image, [~left])[0, 0].sum()
    for masks in ([], [np.ones((3, 3), bool)]):
        with pytest.raises(UseError):
            heat(image, masks)


# ---- in a browser


@pytest.fixture(scope="module")
def chromium() -> str:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return program


@pytest.mark.parametrize("width", [400, 1200])
def test_a_person_tries_it(server, chromium, tmp_path, width):
    (tmp_path / "photo.png").write_bytes(file_of(PICTURE))
    (tmp_path / "letter.txt").write_text("dear all")
    with Page(chromium, tmp_path / "profile", (width, 800)) as page:
        page.open(server.address)
        choose = lambda number: page.run(f"[network.value = {number}, network.dispatchEvent(new Event('change'))][0]")
        state = lambda: page.run("document.querySelector('#state').textContent")
        hidden = lambda place: page.run(f"document.querySelector('#{place}').hidden")
        page.choose("#file", tmp_path / "photo.png")
        page.wait("document.querySelector('#state').textContent.startsWith('Done')")
        assert "compact-x2" in state() and hidden("places") and hidden("shares") and not hidden("result")
        choose(1)
        page.wait("/^Done.*smsr/.test(document.querySelector('#state').textContent)")
        assert page.run("document.querySelectorAll('.gallery img').length") and not hidden("places")
        choose(2)
        page.wait("document.querySelectorAll('#shares tbody tr').length")
        assert not hidden("shares") and page.run("document.querySelector('.swatch').style.background").startswith(
            "rgb("
        )
        # The divider follows the mouse.
        page.run("document.querySelector('.pair').scrollIntoView({block: 'center'}); 0")
        place = page.run(
            "(({left, width, top, height}) => [left + 0.8 * width, top + height / 2])"
            "(document.querySelector('.pair').getBoundingClientRect())"
        )
        page.drag(place, place)
        assert 70 < float(page.run("divide.value")) < 90
        assert page.run("document.documentElement.scrollWidth") == width
        assert page.complaints() == []
        page.choose("#file", tmp_path / "letter.txt")
        page.wait("document.querySelector('#state').className == 'error'")
        assert "not readable as a picture" in state()
        assert all(url.startswith(server.address) for url in page.requests())
