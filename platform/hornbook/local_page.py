"""A web page for the person at this machine: files of the package, and small functions that answer in JSON.

It listens on the loopback address only, and that alone is not enough: any web site that the person has open may send requests to
it, and on a shared machine so may other users. Hence a random token in the path (who does not know it gets nothing), the name in
the Host header checked (a foreign name that was made to resolve to 127.0.0.1 is refused: DNS rebinding), the Origin of whatever
writes checked, and a content security policy that runs no script but the package's own. Trusted types are demanded with no policy
allowed, so in Chromium even the page's own script cannot turn text into HTML: write texts with `textContent`.
"""

from __future__ import annotations

import getpass
import importlib.resources
import json
import os
import secrets
import socket
import sys
import threading
import traceback
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from hornbook.errors import HornbookError, RecipeError

Handler = Callable[[Mapping[str, Any]], Any]
"""Takes the query of a GET (texts) or the JSON object of a POST, returns a JSON value. A HornbookError becomes an answer of
status 400, {"error": message, "cure": cure}; anything else one of status 500, with the traceback on the terminal."""

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""Names by which a browser may call this machine; with any port, since ssh may forward another one."""
LARGEST_BODY = 1 << 20
PATIENCE = 30
"""Seconds that a connection may take to say what it wants."""
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
}


class LocalPage:
    """A page and its functions, listening from the moment it is made; `serve` (or `start` and `close`) answers.

    The page lies at `address`; beside it its files (`NAME`) and functions (`api/NAME`), so that its links are relative.

    Args:
        page: the HTML file of the package that is the page itself.
        files: further files of the package that it may load (.html, .css, .js).
        reads: functions for GET, by name; they must change nothing.
        writes: functions for POST, by name; only this page itself may call them.
        port: where to listen; 0 takes any free one.
        package: where the files lie.

    All functions are called one at a time, on threads of the server.

    Raises:
        RecipeError: the port is taken or not allowed.
    """

    def __init__(
        self,
        page: str,
        files: Sequence[str] = (),
        *,
        reads: Mapping[str, Handler] | None = None,
        writes: Mapping[str, Handler] | None = None,
        port: int = 0,
        package: str = "hornbook",
    ) -> None:
        folder = importlib.resources.files(package)
        self.files = {"": (page, folder.joinpath(page).read_bytes())}
        self.files |= {name: (name, folder.joinpath(name).read_bytes()) for name in files}
        self.reads, self.writes = dict(reads or {}), dict(writes or {})
        self.token = secrets.token_urlsafe(24)
        self.one_at_a_time = threading.Lock()
        try:
            self.server = _Server((HOST, port), _Request)
        except OSError as error:
            raise RecipeError(
                f"--port {port}: cannot listen there: {error.strerror}", "leave --port out: any free port will do"
            ) from None
        self.server.page = self
        self.port = int(self.server.server_address[1])
        self.address = f"http://{HOST}:{self.port}/{self.token}/"

    def serve(self, title: str, browser: bool = True, say: Callable[[str], None] = print) -> None:
        """Say where the page is, open a browser if there is a screen for one, and answer until Ctrl-C."""
        try:
            say(f"{title}: {self.address}")
            if browser and _has_screen():
                # A thread: some systems' browsers return only when they are closed.
                threading.Thread(target=webbrowser.open, args=(self.address,), daemon=True).start()
            else:
                forward = f"ssh -L {self.port}:{HOST}:{self.port} {getpass.getuser()}@{_host_name()}"
                say(f"from another machine: {forward}, then open the address there")
            say("Ctrl-C ends it")
            self.server.serve_forever()
        except KeyboardInterrupt:
            say("")
        finally:
            self.server.server_close()

    def start(self) -> LocalPage:
        """Answer on a thread of its own, until `close`; returns the page."""
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def close(self) -> None:
        """End what `start` began."""
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self) -> LocalPage:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    page: LocalPage
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent where the browser went away in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class _Request(BaseHTTPRequestHandler):
    server: _Server
    server_version = "hornbook"
    sys_version = ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the lines would hold the token."""

    def _answer(self, find: Callable[[str], tuple[str, bytes]]) -> None:
        try:
            status, (kind, body) = HTTPStatus.OK, find(self._name())
        except _Refused as refused:
            status, (kind, body) = refused.status, _json({"error": refused.why, "cure": ""})
        except HornbookError as error:
            status, (kind, body) = HTTPStatus.BAD_REQUEST, _json({"error": error.message, "cure": error.cure})
        except Exception as error:  # a bug of ours: the page says that there is one, the terminal has the traceback
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
            status, (kind, body) = HTTPStatus.INTERNAL_SERVER_ERROR, _json({"error": said, "cure": ""})
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _name(self) -> str:
        """Return what is asked for, without the token."""
        host = self.headers.get("Host", "")
        if host.rsplit(":", 1)[0] not in NAMES:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, f"this page is not served as {host!r}")
        _, token, name = [*urlsplit(self.path).path.split("/", 2), "", ""][:3]
        if not secrets.compare_digest(token.encode(), self.server.page.token.encode()):
            raise _Refused(HTTPStatus.NOT_FOUND, "no such page: open the address that the terminal shows")
        return name

    def _get(self, name: str) -> tuple[str, bytes]:
        if name in self.server.page.files:
            file, data = self.server.page.files[name]
            return f"{TYPES[file.rsplit('.', 1)[1]]}; charset=utf-8", data
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        return self._call(self.server.page.reads, name, query)

    def _post(self, name: str) -> tuple[str, bytes]:
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > LARGEST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has a length, of at most {LARGEST_BODY} bytes")
        body = self.rfile.read(int(size))
        if self.headers.get("Origin") != f"http://{self.headers['Host']}":
            raise _Refused(HTTPStatus.FORBIDDEN, "only this page itself may write")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "write as application/json")
        try:
            value = json.loads(body)
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
        return self._call(self.server.page.writes, name, value)

    def _call(self, handlers: Mapping[str, Handler], name: str, value: Mapping[str, Any]) -> tuple[str, bytes]:
        found = handlers.get(name.removeprefix("api/")) if name.startswith("api/") else None
        if found is None:
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no {name!r} here")
        with self.server.page.one_at_a_time:
            return _json(found(value))


def _json(value: Any) -> tuple[str, bytes]:
    # Lone surrogates, which damaged documents may hold, have no UTF-8.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "application/json; charset=utf-8", text.encode("utf-8", "replace")


def _has_screen() -> bool:
    """Tell whether a browser opened here would be seen: not over ssh, nor where Linux has no display (a text browser would
    take the terminal)."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _host_name() -> str:
    """Return the address by which ssh reached this machine, or its name."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return connection[2] if len(connection) == 4 else socket.gethostname()
