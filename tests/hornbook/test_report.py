"""The report: complete where there is data, silent where there is none, and safe whatever the corpus says.

How it looks was judged in headless Chromium, light and dark, wide and narrow; no browser runs here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from finished_artifact import finish
from hypothesis import given
from hypothesis import strategies as st

from hornbook.artifact import Artifact, artifact_folder
from hornbook.charts import Series, histogram, line_chart, nice_ticks, number, smoothed, thinned
from hornbook.documents import Document, MadeBy, Reject, document_id, documents_table, rejects_table
from hornbook.errors import StoreError
from hornbook.events import Events
from hornbook.parts import PartContent, PartRange, commit_part, same_ids
from hornbook.report import render_report, write_report
from hornbook.store import Store

EVIL = '<script>alert(1)</script><img src="https://evil.example/x.png" onerror="alert(2)">'
VOID = {"meta", "br", "img", "link", "input", "hr"}
RUN = "demo-1"


class Page(HTMLParser):
    """Checks that tags nest, and gathers what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1:] not in (["style"], ["script"]):
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.tags}


class SampleRun:
    """Builds a run in a store, stage by stage, out of real artifacts."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stages: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.events = Events(store, f"runs/{RUN}")

    def stage(
        self,
        name: str,
        kind: str,
        group: str,
        produces: str,
        part: PartContent | None = None,
        planned: int = 0,
        metrics: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        inputs: Mapping[str, Sequence[str]] | None = None,
        finished: bool = True,
    ) -> None:
        artifact = Artifact(self.store, artifact_folder(kind, f"{name:f<64}"))
        if part is not None:
            commit_part(self.store, artifact.folder, PartRange(0, planned), part)
        for file, data in (files or {}).items():
            self.store.write(f"{artifact.folder}/{file}", data)
        inputs = inputs or {}
        if finished:
            finish(
                artifact, produces, kind=kind, stage=name, fingerprint=f"{name:f<64}", seed=1, input_stages=inputs,
                inputs={role: [self.artifacts[parent] for parent in names] for role, names in inputs.items()},
                metrics=metrics or {}, seconds=2.0, files=list(files or {}),
            )  # fmt: skip
        self.artifacts[name] = artifact
        self.stages[name] = {
            "kind": kind, "group": group, "folder": artifact.folder, "fingerprint": f"{name:f<64}",
            "state": "made" if finished else "failed", "seconds": 2.0,
        }  # fmt: skip

    def write(self, **record: Any) -> Page:
        """Write the record and the report; return the page."""
        value = {
            "run": RUN, "recipe": "demo", "seed": 7, "description": "A demo.", "state": "succeeded", "started": 1e9,
            "finished": 1e9 + 75, "stages": self.stages, "source": {"name": "demo"}, "versions": {"ray": "2.60.0"},
            "error": "",
        }  # fmt: skip
        self.store.write_json(f"runs/{RUN}/run.json", {**value, **record})
        name = write_report(self.store, RUN)
        assert name == f"runs/{RUN}/report.html"
        return Page(self.store.read(name).decode())


def stories(texts: Sequence[str], rejected: int = 0) -> PartContent:
    documents = [
        Document(
            document_id(row), row.to_bytes(16, "big"), text, "stories", "story",
            made_by=MadeBy(f"prompt {row}", '{"words": ["dog", "<b>"]}', "m", "r", "{}", row, "stop", 5, 9),
        )
        for row, text in enumerate(texts)
    ]  # fmt: skip
    rejects = [
        Reject(len(texts) + row, "Write about a dog.", "truncated", "cut at 9 tokens", EVIL) for row in range(rejected)
    ]
    counts = {"tokens": 8.0 * len(texts), "completion_tokens": 9.0 * (len(texts) + rejected)}
    return PartContent(documents_table(documents), rejects_table(rejects), counts=counts)


def curve(steps: int) -> bytes:
    rows = [
        {
            "step": step, "phase": "stable" if step <= steps // 2 else "decay", "loss": 8.0 / step, "lr": 1e-3,
            "tokens": 1000, "tokens_per_second": 500.0, "loader_wait_share": 0.001,
            **({"validation": {"stories": 9.0 / step}} if step % 5 == 0 else {}),
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip
    return "\n".join(json.dumps(row) for row in rows).encode() + b'\n{"step": 99, "lo'


@pytest.fixture
def run(tmp_path: Path) -> SampleRun:
    return SampleRun(Store(str(tmp_path)))


@pytest.fixture
def whole(run: SampleRun) -> SampleRun:
    """A run with every section: one corpus, a quality stage, packing, training, export."""
    texts = [EVIL, "Long. " * 400, *(f"Story number {row}." for row in range(2, 20))]
    run.stage("stories", "stories", "generators", "documents", stories(texts, rejected=3), 23)
    run.stage(
        "labels", "annotate", "classifiers", "attributes", metrics={"agreement": {"kappa": 0.1875, "documents": 40}}
    )
    scores = PartContent(pa.table({"id": pa.array([0, 1], pa.int64())}), unit_of=same_ids)
    quality = {
        "threshold": 0.5,
        "histogram": {"edges": [0, 0.25, 0.5, 0.75, 1], "counts": {"stories": [1, 5, 8, 6]}},
        "kept": {"stories": {"documents": 20, "kept": 14}},
    }
    run.stage("quality", "quality", "classifiers", "attributes", scores, 2, quality, inputs={"documents": ["stories"]})
    counts = {"train_documents": 12, "validation_documents": 1, "tokens": 1234567}
    packed = PartContent(None, planned=range(20), succeeded=20, files={"tokens": b"x"}, counts=counts)
    run.stage("packed", "pack", "training", "tokens", packed, 20, inputs={"documents": ["stories"]})
    run.stage(
        "pretrain", "pretrain", "training", "model", files={"metrics.jsonl": curve(20)}, inputs={"tokens": ["packed"]}
    )
    samples = [{"prompt": "Once", "text": f" upon {EVIL} {index}", "engine": "vllm"} for index in range(12)]
    run.stage("export", "export", "training", "model", metrics={"samples": samples}, files={"config.json": b"{}"})
    run.events.emit("run", run=RUN, stages=list(run.stages))
    return run


def test_every_section_is_there(whole: SampleRun) -> None:
    page = whole.write()
    assert {
        "funnel",
        "rejects",
        "conservation",
        "quality",
        "training",
        "samples",
        "timings",
        "lineage",
        "versions",
    } <= page.ids()
    for shown in (
        "1,234,567",
        "truncated",
        "labels are weak",
        "0.188",
        "demo-1",
        "1 min 15 s",
        "decay",
        "2.60.0",
        "nats per token",
    ):
        assert shown in page.text, shown
    for name, artifact in whole.artifacts.items():
        assert name in page.text and artifact.folder in page.text and artifact.manifest.digest[:12] in page.text


def test_funnel_follows_a_source_to_the_shards(whole: SampleRun) -> None:
    text = whole.write().text
    assert "planned 23 100% written 20 87% kept by quality 14 61% packed 13 57%" in text
    assert "Tokens: 160 as written, 1,234,567 packed" in text


def test_figures_named_after_document_sources_are_added_up_for_their_only_corpus(run: SampleRun) -> None:
    run.stage("tales", "stories", "generators", "documents", stories(["A.", "B."]), 2)
    run.stage("web", "installed-python", "classifiers", "documents", stories(["C.", "D.", "E.", "F."]), 4)
    kept = {"code": {"documents": 2, "kept": 1}, "docs": {"documents": 2, "kept": 2}}
    run.stage("quality", "quality", "classifiers", "attributes", metrics={"kept": kept}, inputs={"documents": ["web"]})
    text = run.write().text
    assert "planned 4 100% read 4 100% kept by quality 3 75%" in text
    assert text.count("kept by quality") == 1


def test_the_funnel_shows_what_each_rule_of_a_selection_left(run: SampleRun) -> None:
    steps = [{"rule": "score >= 0.5", "left": 3}, {"rule": "contaminated is false", "left": 2}, {"left": 1}, None]
    selected = stories(["A.", "B."])
    run.stage("chosen", "select", "classifiers", "documents", selected, 2, metrics={"funnel": {"steps": steps}})
    assert (
        "planned 2 67% after “score >= 0.5” 3 100% after “contaminated is false” 2 67% selected 2 67%"
        in run.write().text
    )


def test_a_corpus_that_is_only_cleaned_and_thinned_out_is_counted_once(run: SampleRun) -> None:
    run.stage("web", "files", "classifiers", "documents", stories(["A.", "B.", "C.", "D."], rejected=1), 5)
    run.stage(
        "text", "extract", "classifiers", "documents", stories(["A.", "B.", "C."]), 3, inputs={"documents": ["web"]}
    )
    kept = {"kept": {"files": {"documents": 3, "kept": 1}}}  # beside the documents: nothing is dropped yet
    run.stage("rules", "decontaminate", "classifiers", "attributes", metrics=kept, inputs={"documents": ["text"]})
    steps = {"funnel": {"steps": [{"rule": "long enough", "left": 2}]}, "warnings": ["two are <b>short</b>"]}
    run.stage(
        "few", "select", "classifiers", "documents", stories(["A.", "B."]), 2, steps, inputs={"documents": ["text"]}
    )
    text = run.write().text
    assert "planned 5 100% read 4 80% left by text 3 60% after “long enough” 2 40% left by few 2 40%" in text
    assert "2 documents in few, of 5 planned" in text and "kept by" not in text
    assert "few: two are <b>short</b>" in text  # at the head of the page, whatever sections there are
    run.stage("more", "select", "classifiers", "documents", stories(["A."]), 1, inputs={"documents": ["text"]})
    assert "6 documents in 3 corpora" in run.write().text  # two selections of one corpus are two corpora


def test_weak_labels_come_with_agreement_and_warnings(whole: SampleRun) -> None:
    agreement = {"kappa": 0.1875, "documents": 40}
    quality = {
        "threshold": 0.5,
        "histogram": {"edges": [0, 0.5, 1], "counts": {"code": [4, 2]}},
        "agreement": agreement,  # passed on by the classifier: shown once
        "auc": 0.5625,
        "warnings": ["the forest hardly predicts the judge"],
    }
    whole.stage("forest", "quality", "classifiers", "attributes", metrics=quality)
    del whole.stages["quality"]
    text = whole.write().text
    assert "labels are weak" in text and "hardly predicts the judge" in text and "auc 0.562" in text
    assert text.count("Agreement of the two judge prompts") == 1


def test_conservation_is_shown_per_stage(whole: SampleRun) -> None:
    assert "stories 23 20 3 0 20 yes" in whole.write().text


def test_ten_samples_of_each_in_plan_order(whole: SampleRun) -> None:
    page = whole.write()
    assert sum(tag == "li" for tag, _ in page.tags) >= 20
    assert "Story number 9." in page.text and "Story number 10." not in page.text
    assert page.text.index("Story number 2.") < page.text.index("Story number 9.")
    assert sum(attributes.get("class") == "fold" for _, attributes in page.tags) == 1


def test_documents_cannot_run_or_load_anything(whole: SampleRun) -> None:
    page = whole.write(description=EVIL, error=EVIL, recipe=EVIL, versions={"ray": EVIL}, source={"name": EVIL})
    assert page.text.count("<script>alert(1)</script>") > 12
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag in ("img", "link", "iframe", "object", "image", "use") for tag, _ in page.tags)
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    style = render_report(whole.store, RUN).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    policies = [
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1 and str(policies[0]).startswith("default-src 'none'")


def test_charts_say_what_they_are(whole: SampleRun) -> None:
    charts = [attributes for tag, attributes in whole.write().tags if tag == "svg"]
    assert len(charts) == 6  # loss, learning rate and histogram, each wide and narrow
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)


def test_failed_run_shows_why_and_how_far(run: SampleRun) -> None:
    run.stage("stories", "stories", "generators", "documents", stories(["A.", "B."], rejected=1), 3, finished=False)
    run.stage("pretrain", "pretrain", "training", "model", files={"run/metrics.jsonl": curve(8)}, finished=False)
    run.stages["export"] = {"kind": "export", "group": "training", "folder": "", "state": "pending", "seconds": 0.0}
    run.events.emit("stage-start", stage="pretrain")
    page = run.write(state="failed", finished=None, error="the disk is full\n  cure: free space")
    assert "the disk is full" in page.text and "free space" in page.text
    assert "stories 3 2 1 0 2 yes, so far" in page.text
    assert {"training", "funnel"} <= page.ids() and "quality" not in page.ids()
    assert "not reached" in page.text


@pytest.mark.parametrize("record", [{}, {"stages": None}, {"stages": {"a": None}}, {"started": "soon", "versions": []}])
def test_a_record_with_hardly_anything_still_reports(run: SampleRun, record: dict[str, Any]) -> None:
    run.store.write_json(f"runs/{RUN}/run.json", record)
    Page(render_report(run.store, RUN))


@pytest.mark.parametrize(
    "metrics",
    [
        {"histogram": 3, "kept": [], "agreement": None, "samples": {"a": 1}},
        {"histogram": {"edges": [0, 1], "counts": {"a": [1, 2]}}, "threshold": "high"},
        {"histogram": {"edges": ["a"], "counts": {"a": [None]}}, "samples": [{"text": 3}, 4]},
        {"histogram": {"edges": [0, 0, 0], "counts": {"a": [0, 0]}}, "kept": {"a": {"documents": None}}},
        {"kept": {"stories": {"kept": 5}}, "openers": [["x"], 3], "nested": {"a": {"b": {"c": {"d": {"e": 1}}}}}},
        {"samples": [{"text": "\x00\x1b[31m \x85 \r\n", "prompt": None}], "tokens_per_second": "fast"},
    ],
)
def test_figures_of_another_shape_are_left_out(run: SampleRun, metrics: dict[str, Any]) -> None:
    run.stage("stories", "stories", "generators", "documents", stories(["A."]), 1, metrics)
    assert "\x00" not in run.write().text


@pytest.mark.parametrize("line", ["{}", "[]", '{"step": "a"}', '{"step": 1, "loss": null}', '{"step": 1, "loss": NaN}'])
def test_broken_curves_do_no_harm(run: SampleRun, line: str) -> None:
    run.stage("pretrain", "pretrain", "training", "model", files={"metrics.jsonl": line.encode()})
    run.write()


def test_what_a_model_wrote_on_the_way_is_a_table(run: SampleRun) -> None:
    rows = [
        {"step": step, "samples": [{"prompt": "Once", "text": f" at {step} {EVIL}"}]} for step in range(10, 210, 10)
    ]
    written = "\n".join([*map(json.dumps, rows), '{"step": 210, "samp']).encode()
    run.stage("pretrain", "pretrain", "training", "model", files={"metrics.jsonl": curve(20), "samples.jsonl": written})
    page = run.write()
    assert "What it wrote on the way" in page.text
    shown = [step for step in range(10, 220, 10) if f"Once at {step} " in " ".join(page.text.split())]
    assert shown == [10, 50, 90, 120, 160, 200], "six steps, spread, the first and the last among them"


def test_damaged_manifest_and_missing_artifact_are_named(whole: SampleRun) -> None:
    whole.store.write(f"{whole.artifacts['labels'].folder}/manifest.json", b"{torn")
    whole.store.delete(whole.artifacts["stories"].folder)
    assert "is damaged" in whole.write().text


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no"):
        write_report(Store(str(tmp_path)), "nothing")


def test_long_curve_stays_small_and_quick(run: SampleRun) -> None:
    run.stage("pretrain", "pretrain", "training", "model", files={"metrics.jsonl": curve(20_000)})
    began = time.perf_counter()
    run.write()
    assert time.perf_counter() - began < 10
    assert run.store.size(f"runs/{RUN}/report.html") < 1_000_000


finite = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=30))
def test_lines_stay_inside_the_chart(points: list[tuple[float, float]]) -> None:
    points.sort()
    page = Page(line_chart([Series("a", "c0", points, marked=True)], label="l", x_label="x", y_label="y"))
    for tag, attributes in page.tags:
        if tag == "circle":
            assert 0 <= float(attributes["cx"] or -1) <= 760 and 0 <= float(attributes["cy"] or -1) <= 320


@given(finite, finite)
def test_ticks_cover_the_range_in_few_steps(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    ticks = nice_ticks(low, high)
    span = max(high - low, 1e-9)
    assert ticks[0] <= low + 1e-6 * span and ticks[-1] >= high - 1e-6 * span and len(ticks) <= 9


def test_histogram_stacks_and_marks_the_threshold() -> None:
    drawn = histogram(
        [0, 0.5, 1], {"a": [3, 0], "b": [1, 2]}, colours={"a": "c0"}, label="l", x_label="x", y_label="y", threshold=0.4
    )
    page = Page(drawn)
    bars = [attributes for tag, attributes in page.tags if tag == "rect"]
    assert len(bars) == 6 and "threshold 0.400" in page.text
    assert float(bars[0]["y"] or 0) == pytest.approx(float(bars[1]["y"] or 0) + float(bars[1]["height"] or 0), abs=0.2)


def test_numbers_are_written_for_people() -> None:
    written = [number(value) for value in (1234567, 0, 0.5, 1234.5, 0.0004, -3, float("nan"))]
    assert written == ["1,234,567", "0", "0.50", "1,234", "4.0e-4", "-3", "not finite"]


def test_thinning_and_smoothing_keep_the_level() -> None:
    flat = [(float(x), 2.0) for x in range(5000)]
    assert len(thinned(flat)) == 400 and all(y == pytest.approx(2.0) for _, y in smoothed(thinned(flat), 10))


def test_the_diversity_of_a_steered_corpus_is_shown_before_and_after() -> None:
    from hornbook.diversity_view import diversity
    from hornbook.run_view import StageView

    first: dict[str, Any] = {
        "texts": 100,
        "compared": 90,
        "distinct_3": 0.5,
        "embedding_similarity": 0.61,
        "near_duplicates": 0.0234,
    }
    last: dict[str, Any] = {
        "texts": 90,
        "compared": 90,
        "distinct_3": 0.7,
        "embedding_similarity": 0.42,
        "near_duplicates": 0.0078,
    }
    first["openers"], last["openers"] = [["Once upon a", 0.4]], [["It was a", 0.04]]
    waves = [
        {"wave": 0, "planned": 128, "accepted": 100, "figures": first, "steered": {}},
        {"wave": 1, "planned": 128, "accepted": 90, "figures": last, "steered": {"*": {"avoid": [["Once", -2.0]]}}},
    ]
    metrics = {
        "diversity": {"first_wave": first, "last_wave": last, "near_duplicates": 0.0156},
        "waves": waves,
        "acceptance": {"m": {"planned": 256, "accepted": 190}},
    }
    manifest: Any = SimpleNamespace(metrics=metrics, counts={"planned": 256}, reasons={"near-duplicate": 4})
    run: Any = SimpleNamespace(stages=[StageView("stories", {}, None, manifest)])
    (found,) = diversity(run, {"stories": "c1"})
    assert found["openers"] == [[("Once upon a", 0.4)], [("It was a", 0.04)]]
    assert found["waves"][1]["steered"] == "1 opening made unlikely (“Once”)"
    assert found["models"] == [("m", 256, 190)]
    assert found["duplicates"] == [0.0234, 0.0078] and found["all_duplicates"] == 0.0156
    shown = {label: values for label, values, _ in found["rows"]}
    assert shown["mean cosine between texts"] == [0.61, 0.42] and found["compared"] == 90
    assert [wave["duplicates"] for wave in found["waves"]] == [0.0234, 0.0078]
    assert "polyline" in str(found["chart"]) or "path" in str(found["chart"])


def test_graded_documents_have_a_section_that_says_who_agrees_with_whom(whole: SampleRun) -> None:
    spread = {"documents": 12, "mean": 2.5, "lowest": 0.25, "highest": 4.75, "corpus_mean": 1.75}
    with_judge = {
        "of": "people and judge",
        "first": EVIL,
        "second": "labels",
        "documents": 9,
        "spearman": 0.625,
        "kappa": None,
        "exact": 0.5,
        "within_one": 0.75,
        "bias": -0.375,
    }
    metrics = {
        "graders": {"anna": 12, "ben": 3},
        "agreement_of_graders": [{**with_judge, "of": "two people", "documents": 3}],
        "agreement_with_judge": with_judge,
        "scores": spread,
        "scores_by_source": {"books": spread, "forum": {**spread, "documents": 4}},
        "warnings": ["two lines count for nothing"],
        "agreement": {"kappa": 0.5},
    }
    whole.stage("people", "labels", "classifiers", "attributes", metrics=metrics)
    page = whole.write()
    assert "graded" in page.ids() and "Grades: people anna graded 12 ben graded 3 Two lines count" in page.text
    assert f"people and judge {EVIL} / labels 9 0.62 – 50% 75% -0.38" in page.text.replace("−", "-")
    assert "forum 4 2.50 1.75 0.25 – – – 4.75" in page.text
    assert (
        page.text.count("Agreement of the two judge prompts") == 1
    )  # of the labels, which have no section of their own
