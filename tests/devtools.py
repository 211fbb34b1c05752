"""A headless Chromium that a test drives as a person would: real mouse, screenshots, what the console says.

It speaks the DevTools protocol over two pipes (JSON, a NUL after each message), so that no other package is needed.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

FLAGS = [
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-unsafe-swiftshader",
    "--remote-debugging-pipe",
]  # fmt: skip
# The browser expects its pipes at 3 and 4, whatever numbers ours have.
_START = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for place, one in zip((3, 4), pipes):
    os.dup2(one, place)
    os.close(one)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One page of a browser of its own; a context manager that ends both."""

    def __init__(self, program: str, profile: Path, size: tuple[int, int] = (900, 600)):
        to_browser, from_us = os.pipe()
        from_browser, to_us = os.pipe()
        argv = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        argv = [sys.executable, "-c", _START, str(to_browser), str(to_us), *argv]
        self.process = subprocess.Popen(
            argv, pass_fds=(to_browser, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(to_us)
        self._write, self._read, self._rest, self._count = from_us, from_browser, b"", 0
        self._session: str | None = None
        self.events: list[dict] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **params) -> dict:
        """The answer to one command; what the browser tells meanwhile goes to `events`."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            told = self._next(60)
            if told.get("id") == self._count:
                assert "error" not in told, told
                return told["result"]

    def _next(self, seconds: float) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("the browser is silent")
            self._rest += data
        first, self._rest = self._rest.split(b"\0", 1)
        told = json.loads(first)
        if "method" in told:
            self.events.append(told)
        return told

    def open(self, page: Path | str) -> None:
        """Open a file, or an address of this machine, and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(told["method"] == "Page.loadEventFired" for told in self.events):
            self._next(60)

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in the page's input for files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        found = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=found, files=[str(path.resolve()) for path in files])

    def wait(self, script: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {script}"
            time.sleep(0.05)

    def run(self, script: str):
        """The value of a JavaScript expression; of a promise, what it brings."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def shot(self) -> np.ndarray:
        """What the window shows, two frames later: uint8 (H, W, 3)."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def drag(self, start: tuple[int, int], end: tuple[int, int], steps: int = 4) -> None:
        """Press the left button at one place, move, and let it go at the other."""
        mouse = lambda kind, at: self.call(
            "Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", buttons=1, clickCount=1
        )
        mouse("mousePressed", start)
        for k in range(1, steps + 1):
            mouse("mouseMoved", [a + (b - a) * k // steps for a, b in zip(start, end, strict=True)])
        mouse("mouseReleased", end)

    def wheel(self, at: tuple[int, int], by: int) -> None:
        """Turn the wheel; positive is towards the person."""
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=at[0], y=at[1], deltaX=0, deltaY=by)

    def complaints(self) -> list[str]:
        """Errors and warnings of scripts and of the page's policy so far."""
        said = []
        for told in self.events:
            params = told["params"]
            if told["method"] == "Runtime.exceptionThrown":
                said.append(
                    params["exceptionDetails"].get("text", "") + str(params["exceptionDetails"].get("exception"))
                )
            elif told["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                said.append(str(params["args"]))
            elif told["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                said.append(params["entry"]["text"])
        return [line for line in said if "GL Driver Message" not in line]  # our screenshots make those

    def requests(self) -> list[str]:
        """Addresses asked for, beside what the page carries itself."""
        asked = [t["params"]["request"]["url"] for t in self.events if t["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]
