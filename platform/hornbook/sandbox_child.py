"""The inside of the sandbox: started by `sandbox.py` as a process of its own, confines itself, then becomes Python.

It takes its orders as `name=value` arguments and the code on standard input, and imports little of the standard library,
so that it starts in milliseconds. The order matters: namespaces, then the file tree, then limits, then the loss of root,
then the filter on system calls, then `exec`. What cannot be done ends it with the reason in the pipe `report`; READY there
says that all was done: whatever ends the process after that is the code's own doing.
"""

from __future__ import annotations

# ruff: noqa: PTH101, PTH102, PTH103, PTH112, PTH114, PTH115, PTH120, PTH211
import ctypes
import os
import resource
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing, json and pathlib would take longer to import than everything here takes to run
    from typing import NoReturn

READY = b"confined"
NOT_CONFINED = 119
SCRATCH = "/tmp"
NOBODY = 65534
FIRST_FREE_USER = 1_500_000_000
"""Root becomes this user plus its process id: the limit on processes counts per user, so no two sandboxes share one."""
MOST_PROCESSES = 1 << 22

_NEW_USER, _NEW_MOUNTS, _NEW_PIDS, _NEW_NETWORK, _NEW_IPC, _NEW_HOSTNAME = (
    0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000,
)  # fmt: skip
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_KEPT = {os.ST_NOEXEC: 8, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}
"""What statvfs says of a mount: the flag that mount takes for it."""
_DETACH = 2
_SET_PARENT_DEATH_SIGNAL, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 1, 22, 38
_SECCOMP_FILTER = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DEVICES = ("null", "zero", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def main(orders: dict[str, str]) -> None:
    """Confine this process as ordered and run the code that comes on standard input."""
    _die_with_parent()
    if os.getppid() != int(orders["parent"]):
        os._exit(NOT_CONFINED)  # it is gone already: nobody waits for what the code says
    code = sys.stdin.buffer.read()
    user = _enter_namespaces()
    alive, held = os.pipe()  # `held` closes when this process ends, however it ends
    child = os.fork()  # the new process namespace begins with the child, and ends with it
    if child:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        os._exit(ended if ended >= 0 else 128 - ended)
    os.close(held)
    _build_file_tree(orders["root"], orders["visible"].split("\n"), int(orders["scratch_mib"]))
    main_file = f"{SCRATCH}/main.py"
    with open(main_file, "wb") as file:
        file.write(code)
    os.chmod(main_file, 0o644)
    _limit(orders)
    if user is not None:
        _drop_root(user)
    _call(_libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "renounce privileges")
    _die_with_parent()  # again: the loss of root undid it
    if select.select([alive], [], [], 0)[0]:
        os._exit(NOT_CONFINED)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.set_inheritable(_report, False)
    os.closerange(3, _report)
    os.closerange(_report + 1, 1 << 16)
    _filter_system_calls(bytes.fromhex(orders["filter"]))
    environment = {"PATH": "", "HOME": SCRATCH, "TMPDIR": SCRATCH, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    os.write(_report, READY)
    os.execve(orders["python"], [orders["python"], "-I", "-S", "-B", main_file], environment)


def _die_with_parent() -> None:
    _call(_libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "die with the parent")


def _enter_namespaces() -> int | None:
    """Get namespaces of its own; return the user that root shall become, or None where this is a user without privilege.

    A root that may not make them without a user namespace (in a container, say), or has no other user to become, makes one
    as anybody does.
    """
    flags = _NEW_MOUNTS | _NEW_PIDS | _NEW_NETWORK | _NEW_IPC | _NEW_HOSTNAME
    user, group = os.geteuid(), os.getegid()
    other = _free_user() if user == 0 else None
    if other is not None and _libc.unshare(flags) == 0:
        return other
    _call(_libc.unshare(flags | _NEW_USER), "get namespaces of its own")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return None


def _free_user() -> int | None:
    """Return a user that nobody is, and no other sandbox; None where root is the only user that there is."""
    process = os.getpid()
    with open("/proc/self/uid_map") as file:
        ranges = [(int(first), int(count)) for first, _, count in map(str.split, file)]
    if any(first <= FIRST_FREE_USER and first + count > FIRST_FREE_USER + MOST_PROCESSES for first, count in ranges):
        return FIRST_FREE_USER + process
    first, count = max(ranges, key=lambda found: found[1])
    upper = count // 2  # a container's users: the upper half is rarely used
    return first + upper + process % upper if count > 1000 else None


def _build_file_tree(root: str, visible: list[str], scratch_mib: int) -> None:
    """Make a file tree of `visible` paths, read-only, some devices and an empty scratch folder; nothing else is there."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NO_SETUID | _NO_DEVICES, "size=1m,mode=755")
    for path in visible:
        inside = root + path
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
        elif os.path.isdir(path):
            os.makedirs(inside, exist_ok=True)
            _show(path, inside)
        elif os.path.exists(path):
            _touch(inside)
            _show(path, inside)
    os.mkdir(f"{root}/dev")
    for name in _DEVICES:
        _touch(f"{root}/dev/{name}")
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _BIND)
    scratch = root + SCRATCH
    os.makedirs(scratch, exist_ok=True)
    _mount("tmpfs", scratch, "tmpfs", _NO_SETUID | _NO_DEVICES, f"size={scratch_mib}m,mode=1777")
    os.chdir(root)
    _call(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "change the root folder")
    _call(_libc.umount2(b".", _DETACH), "let go of the old root folder")
    _mount(None, "/", None, _BIND | _REMOUNT | _READ_ONLY | _NO_SETUID | _NO_DEVICES)
    os.chdir(SCRATCH)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _show(path: str, inside: str) -> None:
    """Mount a path read-only. Whatever restricts it outside must be named again, or the kernel refuses."""
    _mount(path, inside, None, _BIND | _RECURSIVE)
    outside = os.statvfs(inside).f_flag
    kept = sum(mount for seen, mount in _KEPT.items() if outside & seen)
    _mount(None, inside, None, _BIND | _REMOUNT | _READ_ONLY | _NO_SETUID | _NO_DEVICES | kept)


def _limit(orders: dict[str, str]) -> None:
    mib = 1 << 20
    for what, value in (
        (resource.RLIMIT_AS, int(orders["memory_mib"]) * mib),
        (resource.RLIMIT_CPU, int(orders["cpu_seconds"])),
        (resource.RLIMIT_NPROC, int(orders["processes"])),
        (resource.RLIMIT_FSIZE, int(orders["scratch_mib"]) * mib),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(what, (value, value))


def _drop_root(user: int) -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(user, user, user)


def _filter_system_calls(program: bytes) -> None:
    """Install a filter program; it holds over `exec` and in every process that the code starts."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    installed = Program(len(program) // 8, program)
    _call(_libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(installed), 0, 0), "filter system calls")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    done = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _call(done, f"mount {target}")


def _call(result: int, what: str) -> None:
    if result != 0:
        _refuse(f"cannot {what}: {os.strerror(ctypes.get_errno())}")


def _refuse(reason: str) -> NoReturn:
    os.write(_report, reason.encode())
    os._exit(NOT_CONFINED)


if __name__ == "__main__":
    orders = dict(argument.split("=", 1) for argument in sys.argv[1:])
    _report = int(orders["report"])
    try:
        main(orders)
    except Exception as failure:
        _refuse(f"cannot set up: {type(failure).__name__}: {failure}")
