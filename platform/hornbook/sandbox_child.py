"""The inside of the sandbox: started by `sandbox.py` as a process of its own, confines itself, then becomes Python.

It takes its orders as JSON in argv[1] and the code on standard input, and imports nothing but the standard library, so
that it starts in milliseconds. The order matters: namespaces, then the file tree, then limits, then the loss of root,
then `exec`; what cannot be done ends it with exit code NOT_CONFINED and the reason on standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

NOT_CONFINED = 119
SCRATCH = "/tmp"
NOBODY = 65534
FIRST_FREE_USER = 1_500_000_000
"""Root becomes this user plus its process id: the limit on processes counts per user, so no two sandboxes share one."""

_NEW_USER, _NEW_MOUNTS, _NEW_PIDS, _NEW_NETWORK, _NEW_IPC, _NEW_HOSTNAME = (
    0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000,
)  # fmt: skip
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_KEPT = {os.ST_NOEXEC: 8, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}
"""What statvfs says of a mount: the flag that mount takes for it."""
_DETACH = 2
_SET_PARENT_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES = 1, 38
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DEVICES = ("null", "zero", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Confine this process as argv[1] says and run the code that comes on standard input."""
    orders = json.loads(sys.argv[1])
    code = sys.stdin.buffer.read()
    _enter_namespaces()
    child = os.fork()  # the new process namespace begins with the child, and ends with it
    if child:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        os._exit(ended if ended >= 0 else 128 - ended)
    _build_file_tree(orders["root"], orders["visible"], orders["scratch_mib"])
    main_file = Path(SCRATCH, "main.py")
    main_file.write_bytes(code)
    main_file.chmod(0o644)
    _limit(orders)
    _drop_root()
    _call(_libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "renounce privileges")
    _call(_libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "die with the parent")
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.closerange(3, 256)
    environment = {"PATH": "", "HOME": SCRATCH, "TMPDIR": SCRATCH, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    os.execve(orders["python"], [orders["python"], "-I", "-S", "-B", str(main_file)], environment)


def _enter_namespaces() -> None:
    flags = _NEW_MOUNTS | _NEW_PIDS | _NEW_NETWORK | _NEW_IPC | _NEW_HOSTNAME
    user, group = os.geteuid(), os.getegid()
    if user:
        flags |= _NEW_USER
    _call(_libc.unshare(flags), "get namespaces of its own")
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {user} 1"),
            ("gid_map", f"{NOBODY} {group} 1"),
        ):
            Path("/proc/self", name).write_text(text)


def _build_file_tree(root: str, visible: list[str], scratch_mib: int) -> None:
    """Make a file tree of `visible` paths, read-only, some devices and an empty scratch folder; nothing else is there."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NO_SETUID | _NO_DEVICES, "size=1m,mode=755")
    for path in map(Path, visible):
        inside = Path(root + str(path))
        inside.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            inside.symlink_to(path.readlink())
        elif path.is_dir():
            inside.mkdir(exist_ok=True)
            _show(path, inside)
        elif path.exists():
            inside.touch()
            _show(path, inside)
    Path(root, "dev").mkdir()
    for name in _DEVICES:
        inside = Path(root, "dev", name)
        inside.touch()
        _mount(f"/dev/{name}", str(inside), None, _BIND)
    scratch = Path(root + SCRATCH)
    scratch.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", str(scratch), "tmpfs", _NO_SETUID | _NO_DEVICES, f"size={scratch_mib}m,mode=1777")
    os.chdir(root)
    _call(_libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."), "change the root folder")
    _call(_libc.umount2(b".", _DETACH), "let go of the old root folder")
    _mount(None, "/", None, _BIND | _REMOUNT | _READ_ONLY | _NO_SETUID | _NO_DEVICES)
    os.chdir(SCRATCH)


def _show(path: Path, inside: Path) -> None:
    """Mount a path read-only. Whatever restricts it outside must be named again, or the kernel refuses."""
    _mount(str(path), str(inside), None, _BIND | _RECURSIVE)
    outside = os.statvfs(inside).f_flag
    kept = sum(mount for seen, mount in _KEPT.items() if outside & seen)
    _mount(None, str(inside), None, _BIND | _REMOUNT | _READ_ONLY | _NO_SETUID | _NO_DEVICES | kept)


def _limit(orders: dict[str, Any]) -> None:
    mib = 1 << 20
    for what, value in (
        (resource.RLIMIT_AS, orders["memory_mib"] * mib),
        (resource.RLIMIT_CPU, orders["cpu_seconds"]),
        (resource.RLIMIT_NPROC, orders["processes"]),
        (resource.RLIMIT_FSIZE, orders["scratch_mib"] * mib),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(what, (value, value))


def _drop_root() -> None:
    if os.geteuid() != 0:
        return
    user = FIRST_FREE_USER + _outer_process
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(user, user, user)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    done = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _call(done, f"mount {target}")


def _call(result: int, what: str) -> None:
    if result != 0:
        _refuse(f"cannot {what}: {os.strerror(ctypes.get_errno())}")


def _refuse(reason: str) -> NoReturn:
    os.write(2, reason.encode())
    os._exit(NOT_CONFINED)


if __name__ == "__main__":
    _outer_process = os.getpid()  # seen from outside: within its own process namespace each sandbox has number 1
    try:
        main()
    except OSError as failure:
        _refuse(f"cannot set up: {failure}")
