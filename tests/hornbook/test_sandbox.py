"""Generated code is tried with everything it could do harm with; each escape must fail, and the machine must not notice."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hornbook.sandbox import SandboxLimits, require_sandbox, run_python


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
        "import ctypes, os; f = ctypes.CDLL(None).unshare; assert f(0x10000000) == 0",
        "import ctypes, os; f = ctypes.CDLL(None).syscall; assert f(272 if os.uname().machine == 'x86_64' else 97, 1 << 28) == 0",
        "import os; os.memfd_create('memory that no limit counts')",
        "import ctypes; assert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0",
        "import socket; socket.socket(40, socket.SOCK_STREAM).connect((2, 22))",
        "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "import ctypes; assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
        "import os; assert os.path.basename({secret!r}) in os.listdir(os.path.dirname({secret!r}))",
        "import os; os.listdir('/sys')",
        "import os; os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0)); open('/tmp/disk').read(1)",
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


def test_code_cannot_pretend_that_it_was_not_confined() -> None:
    for ending in ("import sys; sys.exit(119)", "import os; os.write(3, b'cannot be confined'); os._exit(119)"):
        assert run_python(ending).outcome == "failed", "SandboxError would stop a whole stage"


def test_threads_and_processes_of_its_own_are_allowed() -> None:
    code = """
import concurrent.futures, os, threading
with concurrent.futures.ThreadPoolExecutor(3) as pool:
    print(sum(pool.map(lambda n: n * n, range(10))), flush=True)
if os.fork() == 0:
    print("child", flush=True)
    os._exit(0)
os.wait()
"""
    result = run_python(code)
    assert (result.outcome, result.stdout.split()) == ("ok", ["285", "child"]), result


def test_it_dies_with_the_worker_that_waits_for_it() -> None:
    code = "from hornbook.sandbox import *; run_python('import time; time.sleep(600)', SandboxLimits(seconds=300))"
    with subprocess.Popen([sys.executable, "-c", code]) as worker:
        inside: list[psutil.Process] = []
        deadline = time.monotonic() + 20
        while not any("/tmp/main.py" in process.cmdline() for process in inside) and time.monotonic() < deadline:
            time.sleep(0.05)
            inside = psutil.Process(worker.pid).children(recursive=True)
        assert len(inside) == 2
        worker.kill()
    _, alive = psutil.wait_procs([p for p in inside if p.is_running() and p.status() != "zombie"], timeout=5)
    assert all(process.status() == "zombie" for process in alive)


def test_what_many_processes_take_together_is_bounded() -> None:
    code = """
import os
for _ in range(50):
    try:
        if os.fork() == 0:
            break
    except OSError:
        pass
blocks = []
while True:
    blocks.append(bytearray(1 << 20))
"""
    before = psutil.virtual_memory().available
    lowest = before
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_python, code, SandboxLimits(memory_mib=128, processes=4, output_kib=1024))
        while not running.done():
            lowest = min(lowest, psutil.virtual_memory().available)
            time.sleep(0.02)
    assert running.result().outcome == "failed" and "MemoryError" in running.result().stderr
    assert before - lowest < 2 << 30, "10 GB is what it would take"


def test_code_is_read_as_it_is() -> None:
    assert run_python("print('\ud800')").reason.startswith("SyntaxError")
    assert run_python("x = 1\0").reason.startswith("SyntaxError")
    result = run_python("print('ä\\n\\t{}'.format(1))\n" + "# " + "x" * 300_000)
    assert (result.outcome, result.stdout) == ("ok", "ä\n\t1\n")
    assert run_python("x = (").reason.startswith("SyntaxError")
    assert run_python("").outcome == "ok"


AS_NOBODY = """
import ctypes, os, sys
user, group = os.geteuid(), os.getegid()
assert ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0
inside = sys.argv[3]
for name, text in (("setgroups", "deny"), ("uid_map", f"{inside} {user} 1"), ("gid_map", f"{inside} {group} 1")):
    open(f"/proc/self/{name}", "w").write(text)
if sys.argv[1] == "no more":
    open("/proc/sys/user/max_user_namespaces", "w").write("0")
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""
"""Starts a program as a user without any privilege, who owns what the tests' user owns."""


def without_privilege(code: str, more_namespaces: bool = True, user: int = 65534) -> str:
    arguments = [sys.executable, "-c", AS_NOBODY, "more" if more_namespaces else "no more", code, str(user)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_no_privilege_is_needed() -> None:
    inside = "import os\ntry:\n    os.listdir('/proc')\nexcept OSError as e:\n    print(os.getuid(), type(e).__name__)"
    code = f"import os; from hornbook.sandbox import *; print(os.getuid(), run_python({inside!r}))"
    said = without_privilege(code)
    assert said.startswith("65534 SandboxResult(outcome='ok'"), said
    assert "65534 FileNotFoundError" in said


def test_a_root_that_has_no_other_user_to_become_is_dropped_all_the_same() -> None:
    """As in a container that its user runs without privilege: user 0 there is the only one."""
    inside = "import os\nprint(os.getuid())\ntry:\n    os.setuid(0)\nexcept OSError:\n    print('no')"
    said = without_privilege(
        f"import os; from hornbook.sandbox import *; print(os.getuid(), run_python({inside!r}))", user=0
    )
    assert said.startswith("0 SandboxResult(outcome='ok'"), said
    assert "65534" in said and "no" in said


def test_where_nothing_can_be_confined_nothing_runs(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    code = f"from hornbook.sandbox import *\nrun_python(\"open({str(proof)!r}, 'w')\")"
    said = without_privilege(code, more_namespaces=False)
    assert "SandboxError: generated code cannot be confined here: cannot get namespaces of its own" in said
    assert "user.max_user_namespaces" in said
    assert not proof.exists()


def test_a_stage_can_ask_before_anything_runs() -> None:
    require_sandbox()
    said = without_privilege("from hornbook.sandbox import *\nrequire_sandbox()", more_namespaces=False)
    assert "SandboxError: generated code cannot be confined here" in said


def test_a_recipe_that_must_run_code_says_so_before_anything_is_made(tmp_path: Path) -> None:
    code = (
        "from hornbook.recipe import load_recipe\nfrom hornbook.pipeline import run_recipe\n"
        "from hornbook.store import Store\n"
        f"recipe = load_recipe('exercises', ['engine.kind=echo'])\nrun_recipe(recipe, Store({str(tmp_path)!r}))"
    )
    said = without_privilege(code, more_namespaces=False)
    assert "SandboxError: stages.exercises: exercises runs what the model writes: generated code cannot be" in said
    assert "cure: allow user namespaces" in said
    assert not list(tmp_path.rglob("*.parquet")) and not list(tmp_path.rglob("events*"))


def test_the_doctor_says_whether_code_can_be_run() -> None:
    code = "from hornbook.doctor import diagnose, healthy\nfor f in diagnose():\n    print(f) if f.what == 'sandbox' else 0"
    assert "level='ok'" in without_privilege(code)
    said = without_privilege(code, more_namespaces=False)
    assert "level='note'" in said and "cannot get namespaces of its own" in said and "user.max_user_namespaces" in said
