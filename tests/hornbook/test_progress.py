"""What a person sees of long work: lines in a log that come by themselves, with a rate and an ETA."""

from __future__ import annotations

import time

import pytest

from hornbook import progress
from hornbook.progress import Progress, duration


def test_a_log_gets_lines_while_nothing_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.1)
    shown = Progress("stories", 400, done=100)
    time.sleep(0.45)
    waiting = capsys.readouterr().err.splitlines()
    assert len(waiting) == 2, "lines of nothing come less and less often"
    assert set(waiting) == {"stories: 100/400 rows (25%), none finished yet after 0 s"}
    shown.advance(100, rejected=3, tokens=5000)
    time.sleep(0.25)
    counted = capsys.readouterr().err.splitlines()[-1]
    assert counted.startswith("stories: 200/400 rows (50%), ")
    for said in ("rows/s", "tokens/s", "3 rejected", "ETA"):
        assert said in counted
    shown.close()
    time.sleep(0.25)
    capsys.readouterr()
    time.sleep(0.25)
    assert capsys.readouterr().err == ""


def test_what_was_done_before_does_not_count_in_the_rate() -> None:
    shown = Progress("stories", 1000, done=900)
    shown.advance(50)
    assert shown.line().startswith("950/1,000 rows (95%), ")
    rate = float(shown.line().split(", ")[1].removesuffix(" rows/s").replace(",", ""))
    assert rate == pytest.approx(50 / shown.seconds, rel=0.5)
    shown.close()


@pytest.mark.parametrize(("seconds", "said"), [(42, "42 s"), (190, "3 min 10 s"), (7500, "2 h 05 min")])
def test_durations_read_as_people_write_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
