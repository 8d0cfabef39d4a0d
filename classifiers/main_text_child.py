"""Runs as a process of its own, never inside a worker: takes HTML, gives main text, and may crash or hang over it.

`main_text.py` starts this file. A request is a length (8 bytes, big-endian) and as many bytes of UTF-8; an answer is one
byte that says what it is, a length and the text. Nothing of hornbook is imported, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO

READY, TEXT, FAILED = b"r", b"t", b"f"
LENGTH_BYTES = 8
LONGEST_DETAIL = 300


def main(extractor: str, seconds: float, memory_mib: int) -> None:
    """Answer requests until standard input ends; more than `seconds` of processor time for one ends the process."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # what a library prints is no answer
        os.dup2(nothing, descriptor)
    logging.disable(logging.CRITICAL)
    extract = EXTRACTORS[extractor]()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which a parent may have ignored or blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    confine(memory_mib)
    answer(answers, READY, "")
    while length := requests.read(LENGTH_BYTES):
        html = requests.read(int.from_bytes(length, "big")).decode("utf-8", "replace")
        # The kernel counts, also within compiled code that no Python handler could interrupt; its signal ends the process.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            kind, text = TEXT, extract(html)
        except (
            Exception
        ) as error:  # whatever a parser raises over what it was given, RecursionError and MemoryError too
            kind, text = FAILED, f"{type(error).__name__}: {error}"[:LONGEST_DETAIL]
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer(answers, kind, text)


def answer(answers: BinaryIO, kind: bytes, text: str) -> None:
    """Write one answer."""
    data = text.encode("utf-8", "replace")
    answers.write(kind + len(data).to_bytes(LENGTH_BYTES, "big") + data)
    answers.flush()


def confine(memory_mib: int) -> None:
    """Limit the process's memory, and let the kernel take it, not the worker, where the machine's memory ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # no such limits everywhere
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


def trafilatura() -> Callable[[str], str]:
    """Return trafilatura's extraction, set to precision: no comments, tables kept, each document for itself."""
    from trafilatura import extract

    def main_text(html: str) -> str:
        if (
            "html" not in html[:50].lower()
        ):  # trafilatura takes a fragment (`<body>`, `<p>`) for no HTML and gives nothing
            html = f"<html>{html}"
        return extract(html, favor_precision=True, include_comments=False, deduplicate=False) or ""

    main_text("<html><body><p>warm up</p></body></html>")
    return main_text


def resiliparse() -> Callable[[str], str]:
    """Return resiliparse's extraction of main content, with its line breaks and list bullets."""
    from resiliparse.extract.html2text import extract_plain_text

    def main_text(html: str) -> str:
        return extract_plain_text(html, main_content=True, preserve_formatting=True, alt_texts=False) or ""

    return main_text


EXTRACTORS: dict[str, Callable[[], Callable[[str], str]]] = {"trafilatura": trafilatura, "resiliparse": resiliparse}

if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
