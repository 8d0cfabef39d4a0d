"""Keeps what a process on a CPU has freed: a training step allocates the same buffers again and again.

glibc gives freed buffers of over 32 MiB, and what is free at the end of the heap, back to the system at once, and the next
step pays for the same pages anew, fault by fault: a tenth of the processor time of a small model's step, and more than half of
some operations'. The process then stays as large as it was at its largest.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 1 << 30
"""Bytes; larger buffers are still mapped and given back one by one."""


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next allocation; elsewhere, and under another allocator, nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
