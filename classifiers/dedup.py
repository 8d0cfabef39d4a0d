"""Finds exact and near-duplicates within and across corpora, and says of each document whether it is kept.

Exact: the same text up to white space and Unicode form. Near: MinHash signatures (Broder 1997) cut into bands find
candidates, whose true Jaccard index then decides; connected components of what is left are clusters, of which one document is
kept. Attributes, not deletions. Several steps, each of parts in the folder `work`, so that a run that was killed, or stopped
by a brake, goes on where it stood:

    sketches      a part of the input each   hashes of texts and of bands              classifiers.sketches
    candidates    a slice of hashes each     exact copies, pairs that share a band     classifiers.candidates
    sets          a part of the input each   sets of shingles of documents in pairs    classifiers.verification
    edges         a block of parts each      pairs of true similarity                  classifiers.verification
    links         a group of these files     what joins documents, as little as can be classifiers.links
    large, small  a range of documents each  links of each to the first of its cluster; classifiers.stars
                                             rounds, none where one worker held all pairs
    members       a range of documents each  what the cluster's first one is told      classifiers.clusters
    clusters      a range of documents each  sizes, the kept ones                      classifiers.clusters
    (attributes)  a part of the input each   what was found                            classifiers.decisions
    summary       one                        figures and examples for the brakes       classifiers.brakes
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from classifiers.brakes import BrakeSettings, SummaryPart, brake, losses
from classifiers.candidates import CandidatePart
from classifiers.clusters import BYTES_PER_DOCUMENT, Slices
from classifiers.components import ComponentSteps
from classifiers.corpus_order import CorpusOrder
from classifiers.decisions import DecisionPart
from classifiers.exchange import Numbers
from classifiers.links import BYTES_PER_PAIR
from classifiers.sketches import ScoreColumn, Shingling, SketchPart
from classifiers.steps import OneWorker, Step, inside, units
from classifiers.verification import EdgePart, SetPart
from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError
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
RANGES = 16
"""Ranges of documents that workers join clusters in: at least so many where the corpus is large, each of at least:"""
RANGE_DOCUMENTS = 50_000
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
    worker_memory: int = runtime(
        512,
        ge=1,
        description="MiB that a worker may take for a slice of hashes, for sets, or to join pairs into clusters.",
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
            RecipeError: a corpus is named twice, or `keep: best` lacks attributes for each input.
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
    digests = [artifact.manifest.digest for artifact in documents]
    for number, digest in enumerate(digests):
        if digest in digests[:number] and documents[number].manifest.counts.get(
            "rows"
        ):  # whose attributes would be whose could not be told, and all would be copies
            raise RecipeError(
                f"{stage}: inputs {digests.index(digest) + 1} and {number + 1} are one corpus", "name each once"
            )
    if settings.keep == "best":
        if len(attributes) != len(documents):
            raise RecipeError(
                f"{stage}: keep: best needs the scores of {len(documents)} inputs and has those of {len(attributes)}",
                "name as `attributes` one scoring stage for each of `documents`, in the same order",
            )
        scores = ScoreColumn(attributes, settings.score)
    steps = Steps(context.artifact, corpus, scores, settings, planned(context, corpus, settings))
    whole = inside(steps.work, "whole")
    for step in [Step(whole, OneWorker(steps), units(1))] if corpus.rows <= SMALL_CORPUS else steps:
        step.maker.kind, step.maker.max_workers = Dedup.kind, settings.workers
        replace(context, artifact=step.artifact).make_parts(step.maker, step.ranges, unit="parts")
    summary = inside(steps.work, "summary")
    (part,) = summary.parts
    return summary.store.read(f"{summary.folder}/{part.file('summary').name}")


@dataclass(frozen=True)
class Steps:
    """All steps in order. Each is made before the next one is asked for, since how many there are depends on what was found."""

    artifact: Artifact
    corpus: CorpusOrder
    scores: ScoreColumn | None
    settings: DedupSettings
    plan: Plan

    @property
    def work(self) -> Artifact:
        """The folder of the steps."""
        return inside(self.artifact, WORK)

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps."""
        sketches, candidates, sets, edges, summary = (
            inside(self.work, name) for name in ("sketches", "candidates", "sets", "edges", "summary")
        )
        settings, corpus, plan = self.settings, self.corpus, self.plan
        shingling = Shingling(settings.unit, settings.shingle, settings.longest)
        sketching = SketchPart(corpus, shingling, bands_of(settings), plan.slices, self.scores)
        yield Step(sketches, sketching, units(corpus.parts))
        yield Step(candidates, CandidatePart(corpus, sketches, plan.slices, plan.blocks), units(plan.slices))
        yield Step(sets, SetPart(corpus, candidates, shingling), units(corpus.parts))
        blocks, memory = len(plan.blocks) - 1, settings.worker_memory * MIB
        yield Step(edges, EdgePart(corpus, candidates, sets, blocks, settings.threshold, memory), units(blocks))
        slices = Slices(corpus, sketches, plan.ranges, plan.records)
        joining = ComponentSteps(self.work, slices, candidates, edges)
        if joining.pairs <= slices.at_once:  # three short steps: to start workers for them takes longer
            yield Step(inside(self.work, "joined"), OneWorker(joining), units(1))
        else:
            yield from joining
        deciding = DecisionPart(corpus, sketches, joining.facts, joining.clusters, plan.records)
        yield Step(self.artifact, deciding, corpus.ranges)
        counted = (sketches, candidates, edges)
        yield Step(summary, SummaryPart(corpus, self.artifact, counted), units(1))


@dataclass(frozen=True)
class Plan:
    """How the work is cut; what comes out does not depend on it.

    Attributes:
        slices: of hashes.
        blocks: numbers of the parts at which blocks begin whose pairs are compared together, and their end.
        ranges: numbers of the parts at which ranges begin whose documents are joined together, and their end.
        records: pairs, links and members that a worker holds.
    """

    slices: int
    blocks: Numbers
    ranges: Numbers
    records: int


def bands_of(settings: DedupSettings) -> tuple[int, int]:
    """Return how many bands a document has, and of how many slots; none if near-duplicates are not sought."""
    return bands_for(settings.threshold, settings.permutations) if settings.near else (0, 0)


def planned(context: StageContext, corpus: CorpusOrder, settings: DedupSettings) -> Plan:
    """Return the plan, kept from the first attempt on: files are cut accordingly."""
    store, name = context.artifact.store, f"{context.artifact.folder}/{WORK}/plan.json"
    if not store.exists(name):
        memory = settings.worker_memory * MIB
        slices = math.ceil(corpus.rows * max(1, bands_of(settings)[0]) * BYTES_PER_RECORD / memory)
        ranges = corpus.blocks(min(memory // BYTES_PER_DOCUMENT, max(corpus.rows // RANGES, RANGE_DOCUMENTS)))
        plan = {
            "slices": slices,
            "blocks": corpus.blocks(BLOCK_DOCUMENTS).tolist(),
            "ranges": ranges.tolist(),
            "records": memory // BYTES_PER_PAIR,
        }
        store.create(name, json.dumps(plan).encode())
    kept = store.read_json(name)
    return Plan(kept["slices"], np.array(kept["blocks"], np.int64), np.array(kept["ranges"], np.int64), kept["records"])


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
