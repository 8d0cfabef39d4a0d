"""Comparisons: what is paired is paired, intervals are what they say, and the report draws them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from corpus import finish
from in_process import finished

from hornbook.artifact import Artifact
from hornbook.comparison_view import comparisons
from hornbook.errors import DataError, RecipeError
from hornbook.interval_chart import Interval, interval_chart
from hornbook.parts import PartContent, PartRange, commit_part, same_ids
from hornbook.run_view import RunView, StageView
from hornbook.store import Store
from training.compare import Compare, CompareSettings, compared, student
from training.evaluate_loss import LOSS_SCHEMA

VARIANTS = {"plain": ("plain-1", "plain-2", "plain-3"), "better": ("better-1", "better-2", "better-3")}
NATS_PER_BIT = float(np.log(2))


def test_an_interval_is_students() -> None:
    found = student(np.array([1.0, 2.0, 3.0]))
    assert found["mean"] == 2 and found["high"] == pytest.approx(2 + 4.302653 / np.sqrt(3), abs=1e-4)
    assert student(np.array([1.5])) == {"mean": 1.5, "low": None, "high": None}


def test_pairing_by_seed_takes_out_what_a_seed_does_to_both() -> None:
    """Seeds differ by 0.5 bits, variants by 0.1 exactly: the means' intervals overlap, the difference's is a point."""
    losses = np.array([[2.0, 2.5, 3.0], [1.9, 2.4, 2.9]])  # (variants, seeds)
    sums = np.array([[[loss * NATS_PER_BIT * 100, 100]] * 4 for loss in losses.ravel()])
    found = compared(sums, list(VARIANTS), seed=0)
    plain, better = found["variants"]["plain"], found["variants"]["better"]
    assert plain["low"] < better["mean"] and better["high"] > plain["mean"]
    assert better["difference"]["mean"] == better["difference"]["high"] == pytest.approx(-0.1)
    assert "difference" not in plain
    assert (found["groups"], found["bytes"]) == (4, 400)
    assert better["over_groups"] == {"low": -0.1, "high": -0.1, "better": 4, "groups": 4}


def test_the_interval_over_groups_sees_that_one_group_makes_the_difference() -> None:
    gains = np.array([0.0] * 9 + [-2.0])
    sums = np.array(
        [[[(3.0 + gain) * NATS_PER_BIT * 100, 100] for gain in own] for own in (0 * gains, 0 * gains, gains, gains)]
    )
    found = compared(sums, list(VARIANTS), seed=0)["variants"]["better"]
    assert found["difference"]["mean"] == pytest.approx(-0.2)
    assert found["difference"]["high"] == pytest.approx(-0.2)  # every seed says so
    assert found["over_groups"]["high"] == 0 and found["over_groups"]["low"] < -0.3  # other packages need not
    assert found["over_groups"]["better"] == 1


def losses_of(store: Store, models: dict[str, Artifact], leave_out: str = "") -> Artifact:
    """Return losses of two documents with every model, 0.1 bits less for `better`, one number more for each seed."""
    artifact, rows = Artifact(store, "artifacts/losses"), []
    for number, (name, model) in enumerate(models.items()):
        for document in range(2):
            if name == leave_out and document:
                continue
            loss = 2.0 + 0.1 * (number % 3) - 0.1 * name.startswith("better")
            rows.append(
                {
                    "id": len(rows), "model": model.manifest.digest, "corpus": "popular", "document": document,
                    "key": bytes(16), "group": f"package {document}", "nats": loss * NATS_PER_BIT * 50, "tokens": 20,
                    "bytes": 50,
                }
            )  # fmt: skip
    content = PartContent(pa.Table.from_pylist(rows, schema=LOSS_SCHEMA), unit_of=same_ids)
    commit_part(store, artifact.folder, PartRange(0, len(rows)), content)
    finish(artifact, "losses", "losses", {})
    return artifact


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Artifact]:
    store, found = Store(str(tmp_path)), {}
    for name in (name for names in VARIANTS.values() for name in names):
        found[name] = Artifact(store, f"artifacts/{name}")
        store.write(f"artifacts/{name}/weights", name.encode())
        mixture = [{"phase": phase, "source": "web", "sequences": 8, "epochs": 0.25} for phase in ("stable", "decay")]
        metrics = {"steps": 12, "tokens": 960, "loss": 4.5, "parameters": 77, "mixture": mixture}
        finish(found[name], name, "model", {}, files=["weights"], metrics=metrics)
    return found


def compare(store: Store, losses: Artifact, models: dict[str, Artifact], variants: Any = VARIANTS) -> Artifact:
    stage = Compare("comparison", CompareSettings(variants=variants), seed=1)
    stage.check()
    return finished(stage, store, losses=[losses], models=list(models.values()))


def test_the_stage_compares_and_the_report_draws_it(tmp_path: Path, models: dict[str, Artifact]) -> None:
    store = Store(str(tmp_path))
    made = compare(store, losses_of(store, models), models)
    found = made.manifest.metrics["comparison"]
    assert store.read_json(f"{made.folder}/comparison.json") == found
    better = found["corpora"]["popular"]["variants"]["better"]
    assert better["values"] == [1.9, 2.0, 2.1] and better["difference"]["mean"] == pytest.approx(-0.1)
    assert found["training"]["plain"][0] == {
        "steps": 12, "tokens": 960, "loss": 4.5, "parameters": 77, "epochs": {"web": 0.5}
    }  # fmt: skip
    (shown,) = comparisons(RunView({}, [StageView("comparison", {}, made, made.manifest)]))
    (corpus,) = shown["corpora"]
    assert [row["name"] for row in corpus["rows"]] == ["plain", "better"]
    assert corpus["rows"][0]["apart"] is None and corpus["rows"][1]["apart"].mean == pytest.approx(-0.1)
    assert "plain" not in re.sub(r"aria-label=\"[^\"]*\"|<text class=\"title\".*?</text>", "", corpus["differences"])


def test_models_that_saw_other_documents_are_not_compared(tmp_path: Path, models: dict[str, Artifact]) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(DataError, match="not all models were scored on the same documents of popular"):
        compare(store, losses_of(store, models, leave_out="better-2"), models)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"plain": ("plain-1", "plain-2"), "better": ("better-1",)}, "plain 2, better 1"),
        ({"plain": ("plain-1",), "better": ("plain-1",)}, "plain-1 stands there twice"),
        ({"plain": ("plain-1",), "better": ("beter-1",)}, "'beter-1' is no model.*better-1"),
    ],
)
def test_variants_that_cannot_be_paired_are_refused(
    tmp_path: Path, models: dict[str, Artifact], variants: Any, message: str
) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(RecipeError, match=message):
        compare(store, losses_of(store, models), models, variants)


def test_an_error_bar_spans_its_interval() -> None:
    rows = [Interval("a", "c0", 1.0, 0.5, 1.5, (0.9, 1.1)), Interval("b <b>", "c1", 2.0, None, None)]
    drawn = str(interval_chart(rows, label="x", x_label="bits"))
    wide = drawn.split('class="chart narrow"')[0]
    (low, high, caps), mean = bars(wide, "c0"), float(re.findall(r'class="dot c0" cx="([\d.]+)"', wide)[0])
    assert low < mean < high and mean - low == pytest.approx(high - mean, abs=0.2) and caps == 2
    assert 'class="line c1"' not in wide and "b &lt;b&gt;" in wide and "<b>" not in wide
    assert wide.count("dot c0 faint") == 2
    assert 'class="threshold"' in interval_chart(rows, label="x", x_label="bits", zero=True)
    assert interval_chart([], label="x", x_label="bits") == ""


def bars(drawing: str, colour: str) -> tuple[float, float, int]:
    """Return the ends of the error bar of a colour, and how many caps it has."""
    lines = re.findall(rf'class="line {colour}" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', drawing)
    (bar,) = [line for line in lines if line[1] == line[3]]
    return float(bar[0]), float(bar[2]), len(lines) - 1
