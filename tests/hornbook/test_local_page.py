"""The page on this machine answers the person in front of it, and nobody else."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hornbook.errors import DataError, RecipeError
from hornbook.local_page import LARGEST_BODY, LocalPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

written: list[Any] = []


def echo(query: Mapping[str, Any]) -> dict[str, Any]:
    return dict(query)


def keep(value: Mapping[str, Any]) -> dict[str, int]:
    if value.get("bad"):
        raise DataError("this cannot be kept", "send another")
    written.append(value)
    return {"kept": len(written)}


@pytest.fixture
def page() -> Iterator[LocalPage]:
    written.clear()
    with LocalPage("report.html.jinja", ["report.css"], reads={"echo": echo}, writes={"keep": keep}) as page:
        yield page


def ask(page: LocalPage, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
    """Send a request by hand; headers default to those of the page itself, and one that is empty is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    own = {"Host": f"127.0.0.1:{page.port}"}
    if body is not None:
        own |= {"Origin": f"http://127.0.0.1:{page.port}", "Content-Type": "application/json"}
    own |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest("POST" if body is not None else "GET", path, skip_host=True)
    for name, value in own.items():
        if value:
            connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    kind = answer.headers["Content-Type"]
    return answer.status, json.loads(data) if "json" in kind else data, answer.headers


def test_it_serves_its_files_and_functions(page: LocalPage) -> None:
    status, style, headers = ask(page, f"/{page.token}/report.css")
    assert (status, headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert b":root" in style
    assert ask(page, f"/{page.token}/api/echo?at=0.5&empty=")[:2] == (200, {"at": "0.5", "empty": ""})
    assert ask(page, f"/{page.token}/api/keep", b'{"grade": 3}')[:2] == (200, {"kept": 1})
    assert written == [{"grade": 3}]


def test_a_name_that_ssh_forwards_is_fine(page: LocalPage) -> None:
    assert ask(page, f"/{page.token}/api/echo", Host="localhost:9999")[0] == 200
    assert ask(page, f"/{page.token}/api/keep", b"{}", Host="localhost:9999", Origin="http://localhost:9999")[0] == 200


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:80", "", "127.0.0.1.attacker.example", "[::1]"])
def test_a_foreign_host_is_refused(page: LocalPage, host: str) -> None:
    status, answer, _ = ask(page, f"/{page.token}/api/echo?secret=1", Host=host)
    assert status == 421 and "secret" not in json.dumps(answer)


@pytest.mark.parametrize("path", ["/", "/report.css", "/x/report.css", "/api/echo", "//api/echo", "/%00/"])
def test_without_the_token_there_is_nothing(page: LocalPage, path: str) -> None:
    status, answer, headers = ask(page, path)
    assert status == 404 and page.token not in json.dumps(answer) + str(headers)


@pytest.mark.parametrize("name", ["../errors.py", "errors.py", "report.js", "api/keep", "api/none", "%2e%2e/errors.py"])
def test_only_what_was_named_is_served(page: LocalPage, name: str) -> None:
    assert ask(page, f"/{page.token}/{name}")[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Content_Type": "text/plain"}, 415),  # what a form of another site can send without asking
    ],
)
def test_others_cannot_write(page: LocalPage, headers: dict[str, str], status: int) -> None:
    assert ask(page, f"/{page.token}/api/keep", b"{}", **headers)[0] == status
    assert written == []


def test_what_goes_wrong_is_said(page: LocalPage, capfd: pytest.CaptureFixture[str]) -> None:
    path = f"/{page.token}/api/keep"
    assert ask(page, path, b'{"bad": true}')[:2] == (400, {"error": "this cannot be kept", "cure": "send another"})
    assert ask(page, path, b"{")[0] == ask(page, path, b"[]")[0] == 400
    assert ask(page, path, b"{}", Content_Length=str(LARGEST_BODY + 1))[0] == 413
    page.reads["echo"] = lambda query: query["missing"]
    status, answer, _ = ask(page, f"/{page.token}/api/echo")
    assert (status, answer["error"]) == (500, "KeyError: 'missing'")
    assert "Traceback" in capfd.readouterr().err


def test_every_answer_forbids_foreign_scripts(page: LocalPage) -> None:
    for path in ("/", f"/{page.token}/", f"/{page.token}/api/echo"):
        headers = ask(page, path)[2]
        assert "default-src 'none'; script-src 'self'" in headers["Content-Security-Policy"]
        assert (headers["Referrer-Policy"], headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")


def test_in_a_browser_its_functions_answer_and_text_never_becomes_html(page: LocalPage, browser_page: Page) -> None:
    page.files[""] = ("page.html", b"<!doctype html><title>A page</title><link rel=stylesheet href=report.css>")
    browser_page.goto(page.address)
    assert browser_page.evaluate("fetch('api/echo?at=1').then((answer) => answer.json())") == {"at": "1"}
    send = "fetch('api/keep', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{\"grade\": 5}'})"
    assert browser_page.evaluate(f"{send}.then((answer) => answer.json())") == {"kept": 1}
    assert written == [{"grade": 5}]
    with pytest.raises(Exception, match="TrustedHTML"):
        browser_page.evaluate("document.body.innerHTML = '<b>x</b>'")
    assert browser_page.evaluate("getComputedStyle(document.body).maxWidth") == "none"


def test_a_taken_port_is_an_error_with_its_cure(page: LocalPage) -> None:
    with pytest.raises(RecipeError, match=rf"--port {page.port}: cannot listen there.*\n.*any free port"):
        LocalPage("report.css", port=page.port)


SERVE = """
from hornbook.local_page import LocalPage
LocalPage("report.css").serve("the dial")
print("ended", flush=True)
"""


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "SSH_CONNECTION": "10.0.0.9 5000 10.0.0.5 22", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said = [process.stdout.readline() for _ in range(3)]
    [port] = re.findall(r"the dial: http://127\.0\.0\.1:(\d+)/", said[0])
    assert re.search(rf"ssh -L {port}:127\.0\.0\.1:{port} \S+@10\.0\.0\.5,", said[1])
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out.split(), error) == (0, ["ended"], "")
