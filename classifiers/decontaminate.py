"""Looks for the items of evaluation sets in documents: a model that has read its test proves nothing.

Shared runs of 13 words, as is usual for text; Cosmopedia's rule as an option; for code phi-1's, embedding distance and the
edit similarity of syntax trees. Nothing is dropped here: what was found lies beside the documents, item by item, and a
selection (`is_false: contaminated`) decides. The stage proves on planted items that it finds any (`classifiers.planted`).

Memory: every worker holds the index of all items (`classifiers.overlap_index` says how large) and one part of documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from classifiers.beside import Beside, require_same_documents, require_unique
from classifiers.evaluation_sets import (
    CODE,
    EvaluationSet,
    ItemText,
    artifact_texts,
    items_table,
    read_evaluation_set,
)
from classifiers.item_finder import FindSettings, Found, ItemFinder, most_hit
from classifiers.planted import self_test
from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartContent, PartRange, parquet_bytes, same_ids
from hornbook.partwork import PartMaker
from hornbook.settings import runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

ITEMS = "items.parquet"
LISTED_HITS = 1000
"""Items that are listed beside a document at most; a copy of a whole benchmark holds more."""
MOST_HIT = 10
SUSPICIOUS_SHARE = 0.01
"""Of the documents: an item that more of them hold is a common phrase, most likely. From SUSPICIOUS_DOCUMENTS on."""
SUSPICIOUS_DOCUMENTS = 20

HIT = pa.struct([("benchmark", pa.string()), ("item", pa.string()), ("overlap", pa.float32()), ("method", pa.string())])
SCHEMA = pa.schema(
    [
        ("contaminated", pa.bool_()),
        ("benchmark", pa.string()),  # of the best hit, as the next three; empty without one
        ("item", pa.string()),
        ("overlap", pa.float32()),  # share of the item's words, or match rate of the syntax trees; 0 without a hit
        ("method", pa.string()),  # `13-gram`, `whole` (an item of fewer words) or `syntax`
        ("hit_items", pa.int32()),
        ("hits", pa.list_(HIT)),  # best first, LISTED_HITS at most
    ]
)


class DecontaminateSettings(FindSettings):
    """Which evaluation sets, and when a document holds an item of theirs."""

    evaluation_sets: tuple[EvaluationSet, ...] = Field(
        (),
        description="Files of items: name, path, id_field, fields, code_fields. Or name stages as input `evaluation`.",
    )
    evaluation_is_code: bool = Field(
        False, description="Whether the documents of the input `evaluation` are Python programs."
    )
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")

    @property
    def evaluation_files(self) -> tuple[str, ...]:
        """The files of the sets, which jobs take along."""
        return tuple(given.path for given in self.evaluation_sets)


class Decontaminate(Stage):
    """Says of every document which items of evaluation sets it holds."""

    kind = "decontaminate"
    produces = "attributes"
    Settings = DecontaminateSettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "documents": Input("documents"),
        "evaluation": Input("documents", many=True, optional=True),
        "embeddings": Input("attributes", optional=True),
    }
    file_settings: ClassVar[tuple[str, ...]] = ("evaluation_files",)
    settings: DecontaminateSettings

    @cached_property
    def file_texts(self) -> list[ItemText]:
        """The items of the files. Raises RecipeError or DataError, see `read_evaluation_set`."""
        where = f"stages.{self.name}.evaluation_sets"
        found: list[ItemText] = []
        for given in self.settings.evaluation_sets:
            found += read_evaluation_set(given, self.folder, where)
        return found

    def check(self) -> None:
        """Refuse evaluation sets that cannot be read, that share a name, or of which nothing could be found."""
        names = [given.name for given in self.settings.evaluation_sets]
        _refuse_twice(names, f"stages.{self.name}.evaluation_sets")
        if self.settings.ast_match is None and any(given.code_fields for given in self.settings.evaluation_sets):
            raise RecipeError(
                f"stages.{self.name}: code_fields are compared by syntax trees only", "set ast_match, 0.8 to 0.95"
            )
        ItemFinder(items_table(self.file_texts), self.settings).figures(names)

    def extra_identity(self) -> dict[str, str]:
        """Return what the evaluation sets say, wherever they lie: other items are another artifact."""
        import hashlib

        from hornbook.documents import canonical_json

        content = canonical_json([vars(text) for text in self.file_texts])
        return {"evaluation sets": hashlib.sha256(content.encode()).hexdigest()} if self.file_texts else {}

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many rows as there are documents."""
        rows = inputs["documents"][0].rows
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Write down the items, plant some and find them, then look at every part of the documents."""
        documents, embeddings = context.input("documents"), context.optional_input("embeddings")
        store, name = context.artifact.store, f"{context.artifact.folder}/{ITEMS}"
        texts, names = self._texts(context)
        if embeddings is not None:
            self._check_embeddings(documents, embeddings, texts)
        if not store.exists(name):
            vectors = _program_vectors(texts, embeddings) if embeddings is not None else None
            store.create(name, parquet_bytes(items_table(texts, vectors)))
        finder = ItemFinder(read_items(context.artifact), self.settings)
        _check_dimension(finder, embeddings)
        sets = finder.figures(names)
        planted = self_test(finder, self.name)
        for benchmark in names:
            sets[benchmark]["planted_and_found"] = planted[benchmark]
        figures = {"texts": len(finder.rows), "bytes": finder.words.memory}
        del finder
        maker = DecontaminatePart(self.settings, context.artifact, documents, embeddings)
        totals = context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        metrics = hit_figures(context.artifact, sets) | {"index": figures}
        cut_short = int(totals.counts.get("code_cut_short", 0))
        if cut_short:
            metrics["warnings"].append(f"{cut_short} documents have more or larger functions than were compared")
        return StageResult(metrics=metrics, files=[ITEMS])

    def _texts(self, context: StageContext) -> tuple[list[ItemText], list[str]]:
        """Return the texts of all evaluation sets and the sets' names. Raises RecipeError where there is none."""
        texts = list(self.file_texts)
        names = [given.name for given in self.settings.evaluation_sets]
        stages = context.input_stages.get("evaluation", ())
        for name, corpus in zip(stages, context.inputs.get("evaluation", ()), strict=True):
            texts += artifact_texts(
                name, corpus, self.settings.evaluation_is_code and self.settings.ast_match is not None
            )
            names.append(name)
        if not names:
            raise RecipeError(
                f"stages.{self.name}: there is nothing to look for",
                "name files in `evaluation_sets`, or stages as the input `evaluation`",
            )
        _refuse_twice(names, f"stages.{self.name}")
        return texts, names

    def _check_embeddings(self, documents: Artifact, embeddings: Artifact, texts: Sequence[ItemText]) -> None:
        if self.settings.ast_match is None or not any(text.field == CODE for text in texts):
            raise RecipeError(
                f"stages.{self.name}: embeddings narrow down which programs are compared, and none are",
                "set ast_match and code_fields (or evaluation_is_code), or leave the input out",
            )
        if embeddings.manifest.kind != "embed":
            raise RecipeError(
                f"stages.{self.name}: {embeddings.manifest.stage} is {embeddings.manifest.kind}, not embed",
                "let `embeddings` name an embed stage over the same documents",
            )
        require_same_documents(self.name, documents, embeddings)


class DecontaminatePart(PartMaker):
    """Looks for the items in the documents of one part."""

    kind = "decontaminate"

    def __init__(
        self, settings: DecontaminateSettings, artifact: Artifact, documents: Artifact, embeddings: Artifact | None
    ) -> None:
        self.settings, self.artifact, self.documents = settings, artifact, documents
        self.embeddings = Beside(embeddings, ["embedding"]) if embeddings is not None else None
        self.max_workers = settings.workers

    def setup(self) -> None:
        """Build the index of the items."""
        self.finder = ItemFinder(read_items(self.artifact), self.settings)

    def make(self, part: PartRange) -> PartContent:
        """Return columns id, key, source and those of SCHEMA in the documents' order."""
        table = self.documents.read(self.documents.parts_by_start[part.start], columns=["id", "key", "source", "text"])
        require_unique(table, f"{self.documents.folder}, part {part.start}")
        vectors = self._vectors(part, table)
        texts = table.column("text").to_pylist()
        found = [self.finder.find(text, vector) for text, vector in zip(texts, vectors, strict=True)]
        rows = table.select(["id", "key", "source"])
        columns = pa.Table.from_pylist([_row(one) for one in found], schema=SCHEMA)
        for name in columns.column_names:
            rows = rows.append_column(name, columns.column(name))
        counts = {
            "contaminated": sum(bool(one.hits) for one in found),
            "code_cut_short": sum(one.cut_short for one in found),
        }
        return PartContent(rows, planned=table.column("id").to_numpy(), unit_of=same_ids, counts=counts)

    def _vectors(self, part: PartRange, documents: pa.Table) -> list[npt.NDArray[np.float32] | None]:
        """Return the documents' embeddings; one without any is compared with all programs."""
        vectors: list[npt.NDArray[np.float32] | None] = [None] * documents.num_rows
        if self.embeddings is not None:
            rows, known = self.embeddings.read(part, documents)
            own = np.array(rows.filter(pa.array(known)).column("embedding").to_pylist(), dtype=np.float32)
            for place, vector in zip(np.flatnonzero(known), own, strict=True):
                vectors[place] = vector
        return vectors


def read_items(artifact: Artifact) -> pa.Table:
    """Return the items that an artifact's documents were compared with, rows of ITEMS_SCHEMA."""
    with artifact.store.open_input(f"{artifact.folder}/{ITEMS}") as file:
        return pq.read_table(file)


def hit_figures(artifact: Artifact, sets: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return what was found, by evaluation set, method and source; one part at a time is in memory.

    Args:
        artifact: the finished parts.
        sets: what is known of each evaluation set already.
    """
    documents: Counter[str] = Counter()
    clean: Counter[str] = Counter()
    holders: Counter[str] = Counter()
    methods: Counter[str] = Counter()
    items: Counter[tuple[str, str]] = Counter()
    for table in artifact.tables(columns=["source", "contaminated", "method", "hits"]):
        for row in table.group_by(["source", "contaminated"]).aggregate([([], "count_all")]).to_pylist():
            documents[row["source"]] += row["count_all"]
            clean[row["source"]] += 0 if row["contaminated"] else row["count_all"]
        for row in table.filter(table.column("contaminated")).to_pylist():
            methods[row["method"]] += 1
            items.update((hit["benchmark"], hit["item"]) for hit in row["hits"])
            holders.update({hit["benchmark"] for hit in row["hits"]})
    total = sum(documents.values())
    contaminated = total - sum(clean.values())
    common = most_hit(items, MOST_HIT)
    least = max(SUSPICIOUS_DOCUMENTS, SUSPICIOUS_SHARE * total)
    return {
        "documents": total,
        "contaminated": contaminated,
        "evaluation_sets": {
            name: {
                **known,
                "documents_hit": holders[name],
                "items_hit": sum(benchmark == name for benchmark, _ in items),
            }
            for name, known in sets.items()
        },
        "methods": dict(sorted(methods.items())),
        "most_hit": common,
        "kept": {
            source: {"documents": count, "kept": clean[source], "share": round(clean[source] / count, 4)}
            for source, count in sorted(documents.items())
        },
        "warnings": [
            f"{known['items'] - known['findable']} of {known['items']} items of {name} are too short to be looked for"
            for name, known in sets.items()
            if known["findable"] < known["items"]
        ]
        + [
            f"{hit['documents']} documents hold item {hit['item']} of {hit['benchmark']}: look whether it is a common phrase"
            for hit in common
            if hit["documents"] > least
        ],
    }


def _row(found: Found) -> dict[str, Any]:
    hits = [vars(hit) for hit in found.hits[:LISTED_HITS]]
    best = hits[0] if hits else {"benchmark": "", "item": "", "overlap": 0.0, "method": ""}
    return {"contaminated": bool(hits), **best, "hit_items": len(found.hits), "hits": hits}


def _refuse_twice(names: Sequence[str], where: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(
            f"{where}: two evaluation sets are called {twice!r}", "a hit names its set: give each its own name"
        )


def _program_vectors(texts: Sequence[ItemText], embeddings: Artifact) -> dict[int, list[float]]:
    """Embed the items' programs with the model that embedded the documents; return vectors by the number of the text."""
    from classifiers.features import load_features, settings_of_embeddings

    programs = [number for number, text in enumerate(texts) if text.field == CODE]
    features = load_features(settings_of_embeddings(embeddings.manifest.settings))
    vectors = features.embed([texts[number].text for number in programs])
    return dict(zip(programs, vectors.tolist(), strict=True))


def _check_dimension(finder: ItemFinder, embeddings: Artifact | None) -> None:
    """Refuse embeddings of another dimension than the items'. Raises DataError."""
    if embeddings is None or finder.vectors is None or not embeddings.parts:
        return
    kind = embeddings.read(embeddings.parts[0], columns=["embedding"]).schema.field("embedding").type
    if kind.list_size != finder.vectors.shape[1]:
        raise DataError(
            f"{embeddings.folder} holds vectors of {kind.list_size} numbers, its model now gives {finder.vectors.shape[1]}",
            "embed the documents again",
        )
