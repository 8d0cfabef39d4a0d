"""Generated code is tried with everything it could do harm with; each escape must fail, and the machine must not notice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hornbook.sandbox import SandboxLimits, run_python


def test_ordinary_code_runs_with_the_standard_library() -> None:
    result = run_python("import json, math, re, collections\nprint(json.dumps({'area': math.floor(math.pi * 4)}))")
    assert (result.outcome, result.exit_code, result.stdout) == ("ok", 0, '{"area": 12}\n')


def test_a_failed_assert_is_named() -> None:
    result = run_python("def add(a, b):\n    return a - b\n\nassert add(1, 2) == 3, 'one and two make three'")
    assert result.outcome == "failed"
    assert result.reason == "AssertionError: one and two make three"


def test_what_is_installed_is_not_there() -> None:
    result = run_python("import numpy")
    assert result.reason == "ModuleNotFoundError: No module named 'numpy'"


def test_the_scratch_folder_takes_files_up_to_its_limit() -> None:
    result = run_python("open('notes.txt', 'w').write('x' * 1000); print(len(open('notes.txt').read()))")
    assert (result.outcome, result.stdout) == ("ok", "1000\n")
    many = "for n in range(1000):\n    open(f'{n}', 'wb').write(bytes(1 << 20))"
    result = run_python(many, SandboxLimits(scratch_mib=8))
    assert result.outcome == "failed"
    assert "No space left" in result.reason


def test_an_endless_loop_ends_in_time() -> None:
    began = time.monotonic()
    assert run_python("while True: pass", SandboxLimits(seconds=2)).outcome == "timeout"
    assert run_python("import time; time.sleep(60)", SandboxLimits(seconds=2)).outcome == "timeout"
    assert run_python("while True: pass", SandboxLimits(cpu_seconds=1)).outcome == "killed"
    assert time.monotonic() - began < 15


def test_ten_gigabytes_are_refused() -> None:
    result = run_python("x = bytearray(10 << 30)")
    assert result.reason == "MemoryError"


def test_a_flood_of_output_is_cut() -> None:
    result = run_python("while True: print('x' * 1000)", SandboxLimits(output_kib=8))
    assert result.outcome == "output"
    assert len(result.stdout) == 8 * 1024


def test_a_fork_bomb_stays_small_and_leaves_nothing() -> None:
    before = {process.pid for process in psutil.process_iter()}
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    result = run_python(bomb, SandboxLimits(seconds=3, processes=8))
    assert result.outcome in ("timeout", "killed")
    left = [
        p
        for p in psutil.process_iter(["cmdline"])
        if p.pid not in before and "/tmp/main.py" in (p.info["cmdline"] or [])
    ]
    assert left == []


def test_processes_are_counted_for_each_sandbox_alone() -> None:
    code = (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        time.sleep(1); os._exit(0)\nprint('five')"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", f"from hornbook.sandbox import *; print(run_python({code!r}).stdout)"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["five", "five"]


@pytest.fixture
def secret() -> Iterator[Path]:
    """A file in the home folder that anybody may read and write."""
    path = Path.home() / f"hornbook-test-{uuid.uuid4().hex}.txt"
    path.write_text("kept")
    path.chmod(0o666)
    yield path
    path.unlink()


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)",
        "import socket; socket.create_connection(('10.0.0.1', 80), timeout=2)",
        "import urllib.request; urllib.request.urlopen('http://localhost:{port}', timeout=2)",
        "import os; assert 'passwd' in os.listdir('/etc')",
        "open('/etc/passwd').read()",
        "open({secret!r}).read()",
        "import os; os.listdir('/proc/1')",
        "open({secret!r}, 'w').write('gone')",
        "open('/harm', 'w')",
        "import os, sys; open(os.path.join(os.path.dirname(os.__file__), 'harm.py'), 'w')",
        "import os; os.kill({parent}, 9)",
        "import os; os.kill(os.getppid(), 9) if os.getppid() else os.kill({parent}, 9)",
        "import os; os.setuid(0)",
        "import os; os.chroot('/tmp')",
        "import os; os.mkdir('/tmp/a'); os.chroot('/tmp/a')",
        "import ctypes; assert ctypes.CDLL(None).mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0",
        "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (999, 999))",
        "import os; os.execv('/bin/sh', ['sh', '-c', 'echo out'])",
    ],
)
def test_an_escape_fails(attempt: str, tmp_path: Path, secret: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"], cwd=tmp_path,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"},
                          text=True) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split("port ")[1].split()[0]
            known = {"port": port, "secret": str(secret), "parent": os.getpid()}
            result = run_python(attempt.format(**known))
        finally:
            server.kill()
    assert result.outcome == "failed", result
    assert secret.read_text() == "kept"


def test_code_is_read_as_it_is() -> None:
    result = run_python("print('ä\\n\\t{}'.format(1))\n" + "# " + "x" * 300_000)
    assert (result.outcome, result.stdout) == ("ok", "ä\n\t1\n")
    assert run_python("x = (").reason.startswith("SyntaxError")
    assert run_python("").outcome == "ok"


AS_NOBODY = """
import ctypes, os, sys
user, group = os.geteuid(), os.getegid()
assert ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0
for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {user} 1"), ("gid_map", f"65534 {group} 1")):
    open(f"/proc/self/{name}", "w").write(text)
if sys.argv[1] == "no more":
    open("/proc/sys/user/max_user_namespaces", "w").write("0")
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""
"""Starts a program as a user without any privilege, who owns what the tests' user owns."""


def without_privilege(code: str, more_namespaces: bool = True) -> str:
    arguments = [sys.executable, "-c", AS_NOBODY, "more" if more_namespaces else "no more", code]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_no_privilege_is_needed() -> None:
    inside = "import os\ntry:\n    os.listdir('/proc')\nexcept OSError as e:\n    print(os.getuid(), type(e).__name__)"
    code = f"import os; from hornbook.sandbox import *; print(os.getuid(), run_python({inside!r}))"
    said = without_privilege(code)
    assert said.startswith("65534 SandboxResult(outcome='ok'"), said
    assert "65534 FileNotFoundError" in said


def test_where_nothing_can_be_confined_nothing_runs(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    code = f"from hornbook.sandbox import *\nrun_python(\"open({str(proof)!r}, 'w')\")"
    said = without_privilege(code, more_namespaces=False)
    assert "SandboxError: generated code cannot be confined here: cannot get namespaces of its own" in said
    assert "user.max_user_namespaces" in said
    assert not proof.exists()
