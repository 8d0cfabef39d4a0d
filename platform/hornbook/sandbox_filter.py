"""The system calls that sandboxed code may not make, as the kernel's filter program (seccomp, man 2 seccomp).

Namespaces and limits leave gaps: a user namespace inside gives every privilege back over a new one, System V segments and
memory files count against no limit of a process, and a socket to the machine's host (AF_VSOCK) belongs to no network
namespace. The filter closes those, and with them the parts of the kernel that ordinary programs never enter.
"""

from __future__ import annotations

import errno
import os
import struct

from hornbook.errors import SandboxError

_REFUSED = {
    # name: (number on x86_64, number on aarch64)
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NEW_NAMESPACE = 0x7E020000
"""The flags of `clone` that make a namespace."""
_ORDINARY_SOCKETS = (1, 2, 10)
"""AF_UNIX, AF_INET and AF_INET6: there is nobody to reach in an empty network namespace."""
_X32_BIT = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in the kernel's struct seccomp_data
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000


def filter_program() -> bytes:
    """Return the filter for this machine: 8 bytes an instruction, as `struct sock_filter`.

    Raises:
        SandboxError: the machine's processor has another table of system calls.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise SandboxError(
            f"generated code cannot be confined here: its system calls are not known on {machine}",
            f"run on {' or '.join(_ARCHITECTURES)}",
        )
    column, architecture = _ARCHITECTURES[machine]
    refuse, absent = _FAIL | errno.EPERM, _FAIL | errno.ENOSYS
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),  # a second table of system calls on x86_64
        (_RETURN, 0, 0, refuse),
    ]
    for numbers in _REFUSED.values():
        program += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, refuse)]
    program += [
        (_EQUAL, 0, 1, _CLONE3[column]),  # its flags lie in memory, out of reach: the C library falls back to clone
        (_RETURN, 0, 0, absent),
        (_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACE),
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 2 + len(_ORDINARY_SOCKETS), _SOCKET[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *((_EQUAL, len(_ORDINARY_SOCKETS) - place, 0, family) for place, family in enumerate(_ORDINARY_SOCKETS)),
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
