"""The report's section on compared variants: every figure, the plot with error bars, and nothing of what is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_report import EVIL, Page, SampleRun

from hornbook.store import Store

MODEL = {"steps": 120, "tokens": 983040, "loss": 5.25, "parameters": 3365760, "epochs": {"web": 0.875}}


def comparison(**better: Any) -> dict[str, Any]:
    variants = {
        "plain": {"values": [2.5, 2.75], "mean": 2.625, "low": 2.5, "high": 2.75},
        EVIL: {
            "values": [2.25, 2.5], "mean": 2.375, "low": 2.25, "high": 2.5,
            "difference": {"values": [-0.25, -0.25], "mean": -0.25, "low": -0.3125, "high": -0.1875},
            "over_groups": {"low": -0.4375, "high": 0.0625, "better": 11, "groups": 16}, **better,
        },
    }  # fmt: skip
    return {
        "unit": "bits per byte", "baseline": "plain", "seeds": 2, "training": {"plain": [MODEL], EVIL: [MODEL]},
        "corpora": {"popular": {"groups": 16, "bytes": 700123, "variants": variants}},
    }  # fmt: skip


def write(tmp_path: Path, value: Any) -> Page:
    run = SampleRun(Store(str(tmp_path)))
    run.stage("comparison", "compare", "training", "figures", metrics={"comparison": value}, files={"x.json": b"{}"})
    return run.write()


def test_means_differences_and_their_intervals_are_drawn_and_listed(tmp_path: Path) -> None:
    page = write(tmp_path, comparison())
    assert "comparison" in page.ids()
    for shown in ("2.6250", "2.5000 to 2.7500", "-0.2500", "-0.3125 to -0.1875", "-0.4375 to 0.0625", "11 of 16",
                  "700,123 bytes scored", "2 seeds each", "web 0.88", "983,040"):  # fmt: skip
        assert shown in page.text, shown
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 4 and sum("Difference on popular to plain" in str(label) for label in charts) == 2
    assert not any(tag == "script" and "src" in attributes for tag, attributes in page.tags)
    assert not any(tag == "img" for tag, _ in page.tags)


def test_a_single_seed_has_no_interval(tmp_path: Path) -> None:
    page = write(tmp_path, comparison(low=None, high=None))
    assert "– to –" in page.text and "2.3750" in page.text


def test_damaged_figures_have_no_section(tmp_path: Path) -> None:
    for value in ("text", {"corpora": []}, {"corpora": {"popular": {"variants": {"plain": {"mean": "much"}}}}}):
        assert "comparison" not in write(tmp_path / str(len(str(value))), value).ids()
