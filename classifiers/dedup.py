"""Finds exact and near-duplicates within and across corpora, and says of each document whether it is kept.

Exact: the same text up to white space and Unicode form. Near: MinHash signatures (Broder 1997) cut into bands find
candidates, whose true Jaccard index then decides; connected components of what is left are clusters, of which one document is
kept. Attributes, not deletions. Several steps, each of parts in the folder `work`, so that a run that was killed, or stopped
by a brake, goes on where it stood:

    sketches      a part of the input each   hashes of texts and of bands              classifiers.sketches
    candidates    a slice of hashes each     exact copies, pairs that share a band     classifiers.candidates
    sets          a part of the input each   sets of shingles of documents in pairs    classifiers.verification
    edges         a block of parts each      pairs of true similarity                  classifiers.verification
    clusters      one                        connected components, the kept ones       classifiers.components
    (attributes)  a part of the input each   what was found                            classifiers.decisions
    summary       one                        figures and examples for the brakes       classifiers.brakes
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from classifiers.brakes import BrakeSettings, SummaryPart, brake, losses
from classifiers.candidates import CandidatePart
from classifiers.components import ClusterPart
from classifiers.corpus_order import CorpusOrder
from classifiers.decisions import DecisionPart
from classifiers.exchange import Numbers
from classifiers.sketches import ScoreColumn, Shingling, SketchPart
from classifiers.verification import EdgePart, SetPart
from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartContent, PartRange, commit_part, missing_ranges
from hornbook.partwork import PartMaker
from hornbook.settings import runtime
from hornbook.shingles import bands_for
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

SUMMARY = "dedup.json"
WORK = "work"
BYTES_PER_RECORD = 800
"""Memory that the candidates of a slice take for each band of a document in it: measured where every bucket is large;
where most documents are alone in theirs it is an eighth."""
BLOCK_DOCUMENTS = 10_000
"""Documents whose pairs are compared by one worker at a time."""
SMALL_CORPUS = 20_000
"""Documents up to which one worker takes all steps."""
MIB = 1 << 20
REPORTED_SOURCES = 50


class DedupSettings(BrakeSettings):
    """What counts as a duplicate, which one is kept, and what a run may lose before it stops."""

    near: bool = Field(True, description="Find near-duplicates, too; without, exact copies only.")
    threshold: float = Field(0.8, gt=0, le=1, description="True Jaccard index from which two documents are duplicates.")
    unit: Literal["words", "characters"] = Field(
        "words",
        description="What shingles are made of. words: a script without spaces has one per character. characters: with "
        "shingle 1, threshold 0.85 and 256 permutations, what Phi2-mini-Chinese did: the set of single characters.",
    )
    shingle: int = Field(5, ge=1, le=50, description="Successive words (or characters) that make a shingle.")
    permutations: int = Field(
        256,
        ge=16,
        le=4096,
        description="Most MinHash slots. As many are used as find a pair at the threshold with 99%.",
    )
    longest: int = Field(4_000_000, ge=1, description="Characters above which a document is compared exactly only.")
    keep: Literal["first", "best"] = Field(
        "first", description="Which of a cluster is kept: the first in the order of inputs, or that of the best score."
    )
    score: str = Field("score", description="keep best: the column of the input `attributes`; higher is better.")
    worker_memory: int = runtime(512, ge=1, description="MiB that a worker may take for a slice of hashes or for sets.")
    cluster_memory: int = runtime(
        2048, ge=1, description="MiB for joining duplicates into clusters, on one worker: 200 bytes for each of them."
    )
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class Dedup(Stage):
    """Marks duplicates."""

    kind = "dedup"
    produces = "attributes"
    Settings = DedupSettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "documents": Input("documents", many=True),
        "attributes": Input("attributes", many=True, optional=True),
    }
    settings: DedupSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many rows as there are documents."""
        known = [found.rows for found in inputs["documents"]]
        rows = None if None in known else sum(known)  # type: ignore[arg-type]
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Make what is missing of each step, look at the brakes, drop the steps.

        Raises:
            DataError: there are no documents, ids are doubled, or a brake stops the stage: with examples.
            RecipeError: `keep: best` without attributes for each input.
        """
        store, folder = context.artifact.store, context.artifact.folder
        if not store.exists(f"{folder}/{SUMMARY}"):
            store.create(f"{folder}/{SUMMARY}", run_steps(context, self.settings, self.name))
        summary = store.read_json(f"{folder}/{SUMMARY}")
        brake(self.name, summary, self.settings)
        store.delete(f"{folder}/{WORK}")
        return StageResult(metrics=figures(summary), files=[SUMMARY])


def run_steps(context: StageContext, settings: DedupSettings, stage: str) -> bytes:
    """Make what is missing of each step and of the attributes; return the summary."""
    documents, attributes = context.inputs["documents"], context.inputs.get("attributes", ())
    corpus = CorpusOrder(documents)
    scores = None
    if corpus.rows == 0:
        raise DataError(
            f"{stage}: there are no documents in which to find duplicates", "look at the rejects of its inputs"
        )
    if settings.keep == "best":
        if len(attributes) != len(documents):
            raise RecipeError(
                f"{stage}: keep: best needs the scores of {len(documents)} inputs and has those of {len(attributes)}",
                "name as `attributes` one scoring stage for each of `documents`, in the same order",
            )
        scores = ScoreColumn(attributes, settings.score)
    bands = bands_for(settings.threshold, settings.permutations) if settings.near else (0, 0)
    slices, blocks = plan(context, corpus, bands[0], settings.worker_memory * MIB)
    shingling = Shingling(settings.unit, settings.shingle, settings.longest)
    memory = settings.worker_memory * MIB
    artifact = Artifact(context.artifact.store, context.artifact.folder)
    sketches, candidates, sets, edges, clusters, summary = (
        Artifact(artifact.store, f"{artifact.folder}/{WORK}/{name}")
        for name in ("sketches", "candidates", "sets", "edges", "clusters", "summary")
    )
    counted = (sketches, candidates, edges)
    steps = [
        Step(sketches, SketchPart(corpus, shingling, bands, slices, scores), units(corpus.parts)),
        Step(candidates, CandidatePart(corpus, sketches, slices, blocks), units(slices)),
        Step(sets, SetPart(corpus, candidates, shingling), units(corpus.parts)),
        Step(
            edges,
            EdgePart(corpus, candidates, sets, len(blocks) - 1, settings.threshold, memory),
            units(len(blocks) - 1),
        ),
        Step(clusters, ClusterPart(corpus, sketches, candidates, edges, settings.cluster_memory * MIB), units(1)),
        Step(artifact, DecisionPart(corpus, sketches, clusters), corpus.ranges),
        Step(summary, SummaryPart(corpus, artifact, counted), units(1)),
    ]
    if corpus.rows <= SMALL_CORPUS:
        steps = [Step(Artifact(artifact.store, f"{artifact.folder}/{WORK}/whole"), OneWorker(steps), units(1))]
    for step in steps:
        step.maker.kind, step.maker.max_workers = Dedup.kind, settings.workers
        replace(context, artifact=step.artifact).make_parts(step.maker, step.ranges, unit="parts")
    (part,) = Artifact(summary.store, summary.folder).parts
    return summary.store.read(f"{summary.folder}/{part.file('summary').name}")


@dataclass(frozen=True)
class Step:
    """Parts to make in a folder, by a maker; those that are there are not made again."""

    artifact: Artifact
    maker: PartMaker
    ranges: Sequence[PartRange]


class OneWorker(PartMaker):
    """Makes the parts of several steps one after the other: to start workers for each takes longer than a small corpus."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = list(steps)

    def make(self, part: PartRange) -> PartContent:
        """Commit what is missing of each step."""
        for step in self.steps:
            store, folder = step.artifact.store, step.artifact.folder
            if missing := missing_ranges(store, folder, step.ranges):
                step.maker.setup()
                for some in missing:
                    commit_part(store, folder, some, step.maker.make(some))
        return PartContent(table=None, succeeded=1)


def units(count: int) -> list[PartRange]:
    """Return so many planned units, each a part of its own."""
    return [PartRange(unit, unit + 1) for unit in range(count)]


def plan(context: StageContext, corpus: CorpusOrder, bands: int, memory: int) -> tuple[int, Numbers]:
    """Return in how many slices hashes are cut, and the bounds of the blocks of parts.

    Kept from the first attempt on, since files are cut accordingly; what comes out does not depend on it.
    """
    store, name = context.artifact.store, f"{context.artifact.folder}/{WORK}/plan.json"
    if not store.exists(name):
        slices = math.ceil(corpus.rows * max(1, bands) * BYTES_PER_RECORD / memory)
        blocks = corpus.blocks(BLOCK_DOCUMENTS).tolist()
        store.create(name, json.dumps({"slices": slices, "blocks": blocks}).encode())
    kept = store.read_json(name)
    return kept["slices"], np.array(kept["blocks"], np.int64)


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the report shows."""
    totals: Counter[str] = Counter()
    for counts in summary["sources"].values():
        totals.update(counts)
    found = summary["counts"]
    return {
        "documents": totals.total(),
        **{name: totals[name] for name in ("kept", "exact", "near")},
        "clusters": sum(summary["cluster_sizes"].values()),
        "largest_cluster": max(map(int, summary["cluster_sizes"]), default=1),
        "candidates": int(found.get("candidates", 0)),
        "refused": int(found.get("candidates", 0) - found.get("verified", 0)),
        "not_compared": int(found.get("not_compared", 0)),
        "exactly_only": int(found.get("exactly_only", 0)),
        "losses": [
            {"source": source, "lost": lost, "share": round(share, 4)}
            for source, lost, share in losses(summary, 1)[:REPORTED_SOURCES]
        ],
    }
