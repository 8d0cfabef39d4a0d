"""`hornbook run` with a RAY_ADDRESS that cannot serve: one message with the cure, in bounded time, nothing left behind."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray_head import ROOT, RayHead, ray_head

from hornbook.errors import ClusterError
from hornbook.ray_address import require_ray_at

RECIPE = "name: small\nengine: {kind: echo}\nstages:\n  stories: {kind: stories, rows: 8}\n"


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(os.environ["RAY_AUTH_TOKEN"]) as running:
        yield running


def run(folder: Path, address: str, **variables: str) -> tuple[int, str, float]:
    """Run a small recipe; return exit code, what it said, and seconds. An empty variable is taken out."""
    (folder / "small.yaml").write_text(RECIPE)
    environment = {**os.environ, "HORNBOOK_STORE": str(folder / "store"), "RAY_ADDRESS": address, **variables}
    environment |= {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "hornbook.cli", "run", "small.yaml"],
        cwd=folder,
        env={name: value for name, value in environment.items() if value},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


def refused(told: tuple[int, str, float], folder: Path, *said: str) -> None:
    code, output, seconds = told
    assert code == 1, output
    for text in said:
        assert text in output
    assert output.count("error:") == 1, output
    assert "Traceback" not in output
    assert seconds < 60
    assert not list((folder / "store").glob("artifacts/*/manifest.json"))


@contextmanager
def other_program(speaks: bool = True) -> Iterator[str]:
    """Something else on a port: a plain HTTP server, or a program that takes connections and says nothing."""
    if not speaks:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            yield f"127.0.0.1:{silent.getsockname()[1]}"
        return
    handler = http.server.BaseHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ({"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": ""}, "wants its token, and this process has none"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token of this process"),
    ],
    ids=["none", "wrong"],
)
def test_a_head_that_wants_a_token(head: RayHead, tmp_path: Path, token: dict[str, str], said: str) -> None:
    told = run(tmp_path, head.control_store, HOME=str(tmp_path), **token)
    refused(told, tmp_path, f"the cluster at RAY_ADDRESS={head.control_store} {said}", "RAY_AUTH_TOKEN_PATH")


def test_a_port_that_another_program_holds(tmp_path: Path) -> None:
    with other_program() as address:
        told = run(tmp_path, address)
    refused(told, tmp_path, f"what listens at RAY_ADDRESS={address} is not Ray", "hornbook doctor")


def test_a_program_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hornbook.ray_address.ANSWER_SECONDS", 0.3)
    with other_program(speaks=False) as address, pytest.raises(ClusterError, match=f"no Ray answers at .*{address}"):
        require_ray_at(address)


def test_a_port_where_nothing_listens(tmp_path: Path) -> None:
    with other_program(speaks=False) as address:
        pass
    refused(run(tmp_path, address), tmp_path, f"no Ray answers at RAY_ADDRESS={address}", "ray start --head")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:port", "127.0.0.1:99999", ":6379"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ClusterError, match="is not HOST:PORT"):
        require_ray_at(address)


def test_the_jobs_api_is_not_where_runs_connect() -> None:
    with pytest.raises(ClusterError, match="is a Jobs API") as caught:
        require_ray_at("http://127.0.0.1:8265")
    assert "hornbook submit RECIPE --address http://127.0.0.1:8265" in caught.value.cure


def test_a_head_answers(head: RayHead) -> None:
    require_ray_at(head.control_store)
    require_ray_at(f"ray://{head.control_store}")
    for address in ("", "auto", "local"):
        require_ray_at(address)
