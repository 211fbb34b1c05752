"""The server of the page: one process of the standard library, made for requests of strangers.

Two addresses are known: the page, and the computation of a picture, whose content is the request's body. Nothing that
a client sends is used as a name or a path. A body is read only after its length was compared with what is allowed, and
within a time; few are read at once, and one is computed at a time.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import ipaddress
import json
import os
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sparsemask._version import __version__
from sparsemask.cli.serving.networks import Refused, Served
from sparsemask.cli.serving.page import build_page
from sparsemask.errors import UseError, one_line, say

PAGE, COMPUTE = "/", "/compute"
_METHODS = {PAGE: ("GET", "HEAD"), COMPUTE: ("POST",)}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_CONNECTIONS = 32  # at once; more are closed
_AT_ONCE = 4  # pictures that are read, wait or are computed; more are told to come again
_SILENT, _READING = 20.0, 60.0  # seconds: between two parts of a request, and for a whole body
_DRAINED, _DRAINING = 1 << 26, 2.0  # bytes and seconds of a refused body that are read, so that the answer arrives
_PART = 1 << 16
_STOPPING = 10.0  # seconds that an end waits for the picture that is being computed


class Server(ThreadingHTTPServer):
    """The page and its networks on an address; a context manager that closes it.

    Args:
        place: host and port; port 0: any that is free.
        networks: what the page offers, in order.
        largest: bytes of a picture's file.

    Raises:
        UseError: the address cannot be listened on.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it lets two processes share a port

    def __init__(self, place: tuple[str, int], networks: Sequence[Served], largest: int):
        self.networks, self.largest = networks, largest
        self.page, self.policy = build_page([network.name for network in networks], largest)
        self.computing, self.pictures = threading.Lock(), threading.BoundedSemaphore(_AT_ONCE)
        self._connections = threading.BoundedSemaphore(_CONNECTIONS)
        self._serving: dict[threading.Thread, socket.socket] = {}
        host, port = place
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except OverflowError:
            raise UseError(f"--port {port}: ports are 0 to 65535") from None
        except socket.gaierror:
            raise UseError(f"--host {host}: no address of this machine") from None
        except OSError as error:
            raise UseError(_refusal(error, host, port)) from None

    def server_bind(self) -> None:
        """Bind without asking a name server who we are."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def address(self) -> str:
        """What a browser is given."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"

    def serve(self) -> None:
        """Say the address and serve until Ctrl-C; pictures that have arrived are answered, for a while."""
        try:
            say(f"open {self.address} in a browser; Ctrl-C ends it")
            self.serve_forever()
        except KeyboardInterrupt:
            self._end_connections()
            say("\nstopped", sys.stderr)

    def _end_connections(self) -> None:
        """Take no more from clients and wait, for a while, for what is being answered.

        Threads are waited for until they have left the interpreter, not only their work.
        """
        end = time.monotonic() + _STOPPING
        for request in [*self._serving.values()]:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RD)
        for thread in [*self._serving]:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))

    def known_as(self, name: str) -> bool:
        """Whether a request may call us so.

        A page of elsewhere that has its own name lead to this machine must not reach what listens on it alone.

        Args:
            name: of the request's Host, without its port.
        """
        return not _is_local(self.server_name) or name == "localhost" or _is_local(name)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a connection, while there are not too many."""
        for ended in [thread for thread in self._serving if not thread.is_alive()]:
            del self._serving[ended]
        if self._connections.acquire(blocking=False):
            thread = threading.Thread(
                target=self.process_request_thread, args=(request, client_address), daemon=self.daemon_threads
            )
            self._serving[thread] = request
            thread.start()
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that went away; say all else."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = f"sparsemask/{__version__}", ""
    timeout = _SILENT

    def handle_request(self) -> None:
        """Answer any method."""
        try:
            self._serve()
        except Refused as refusal:
            self._fail(refusal.status, str(refusal))

    # The base class looks for a method of this name.
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = handle_request

    def _serve(self) -> None:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        try:
            where, name = urlsplit(self.path), urlsplit(f"//{host}").hostname or ""
            query = parse_qs(where.query, max_num_fields=8)
            ours = origin is None or urlsplit(origin).netloc == host
        except ValueError:
            raise Refused(HTTPStatus.BAD_REQUEST, "the request's address cannot be read") from None
        if not self.server.known_as(name):
            raise Refused(HTTPStatus.FORBIDDEN, "this page is reached by the address that the terminal says")
        if where.path not in _METHODS:
            raise Refused(HTTPStatus.NOT_FOUND, f"no such address; there are {PAGE} and {COMPUTE}")
        allowed = _METHODS[where.path]
        if self.command not in allowed:
            message = f"{where.path} takes {' and '.join(allowed)}"
            self._fail(HTTPStatus.METHOD_NOT_ALLOWED, message, {"Allow": ", ".join(allowed)})
        elif where.path == PAGE:
            policy = {"Content-Security-Policy": self.server.policy}
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8", policy)
        elif not ours:
            raise Refused(HTTPStatus.FORBIDDEN, "pictures are taken from this page alone")
        elif not self.server.pictures.acquire(blocking=False):
            message = "others' pictures are being computed: try again in a moment"
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, message, {"Retry-After": "5"})
        else:
            try:
                self._compute(self._network(query))
            finally:
                self.server.pictures.release()

    def _compute(self, network: Served) -> None:
        """Answer with what a network makes of the body."""
        body = self._body(self._length())
        try:
            with self.server.computing:
                answer = network.answer(body)
        except Refused:
            raise
        except UseError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, one_line(error)) from None
        except Exception:
            traceback.print_exc()
            message = "the network failed at this picture; the server's terminal says more"
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, message) from None
        width, height = answer.size
        times = ", ".join(f"{what} {spent:.0f} ms" for what, spent in answer.times.items())
        say(f"{network.name}: {width}x{height}, {times}", sys.stderr)
        text = json.dumps({"network": network.name, **answer.values()}, default=_base64)
        self._send(HTTPStatus.OK, text.encode(), "application/json")

    def _network(self, query: Mapping[str, Sequence[str]]) -> Served:
        """The network that a query's number means, the first without one."""
        number = query.get("network", ["0"])[0]
        count = len(self.server.networks)
        if not (number.isascii() and number.isdecimal() and len(number) < 5 and int(number) < count):
            raise Refused(HTTPStatus.BAD_REQUEST, f"network: a number from 0 to {count - 1}")
        return self.server.networks[int(number)]

    def _length(self) -> int:
        """Bytes of the body, compared with what is allowed."""
        text = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not (text.isascii() and text.isdecimal()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the picture's Content-Length is missing")
        length = int(text) if len(text) < 20 else sys.maxsize
        if length > self.server.largest:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the picture's file is larger than {self.server.largest / 1e6:g} MB, which are taken here",
            )
        if not length:
            raise Refused(HTTPStatus.BAD_REQUEST, "the request holds no picture")
        return length

    def _body(self, length: int) -> bytes:
        """The body, read within a time."""
        parts, end = io.BytesIO(), time.monotonic() + _READING
        while (left := length - parts.tell()) > 0:
            part = self.rfile.read1(min(left, _PART))
            if not part:
                raise Refused(HTTPStatus.BAD_REQUEST, "the picture's file ended too early")
            if time.monotonic() > end:
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"the picture took longer than {_READING:.0f} s to arrive")
            parts.write(part)
        return parts.getvalue()

    def _fail(self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> None:
        text = json.dumps({"error": one_line(message)})
        self._send(status, text.encode(), "application/json", headers)
        self._drain()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, in the same form."""
        status = HTTPStatus(code)
        self.command = self.command or ""  # of a request that could not be read
        self._fail(status, status.phrase.lower())

    def _send(self, status: HTTPStatus, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        sent = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close", **_HEADERS}
        for name, value in {**sent, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)

    def _drain(self) -> None:
        """Read some of a body that was refused: closing before would take the answer back."""
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_DRAINING)
            end, left = time.monotonic() + _DRAINING, _DRAINED
            while left > 0 and time.monotonic() < end and (part := self.rfile.read1(_PART)):
                left -= len(part)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what strangers send does not belong on a terminal."""


def _base64(value: object) -> str:
    """Bytes as JSON has them."""
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} is no JSON")
    return base64.b64encode(value).decode()


def _is_local(name: str) -> bool:
    """Whether an address is one of this machine alone."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refusal(error: OSError, host: str, port: int) -> str:
    """One line for an address that cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return f"--port {port}: is in use on {host}; give another, or --port 0 for any that is free"
    if error.errno == errno.EACCES:
        return f"--port {port}: this user may not listen on it; ports from 1024 on are free to all"
    return f"--host {host} --port {port}: cannot be listened on ({error.strerror or error})"
