"""Kinds of text made from documents: which document, and which passage of it, a planned row reads.

The plan stays a function of the row number: rows are counted through the documents (with scores, through those at or above
the threshold), or through their passages where a long document has several. A worker holds one part in memory.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from generators.checks import sure_language
from generators.overlap import copied_sentence
from generators.prompted import Prompt, PromptedStage, PromptSettings, Refused
from hornbook.artifact import Artifact
from hornbook.documents import KEY_BYTES
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartCommit
from hornbook.scores import ScoreFilter
from hornbook.stage import Expected, Input, StageContext

SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+")
PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
IMAGE = re.compile(r"!\[[^\]\n]*\]\([^)\n]*\)|^\.\. image::.*(?:\n[ \t]+:.*)*$", re.MULTILINE)
LINK = re.compile(r"\[([^\]\n]*)\]\([^)\n]*\)|`([^`<\n]+?)\s*<[^>\n]+>`__?")
TAG = re.compile(
    r"</?(?:a|b|br|center|details|div|em|h[1-6]|i|img|li|ol|p|picture|source|span|strong|sub|summary|sup|table|td|th|tr|ul)"
    r"\b[^<>]*>|<!--.*?-->",
    re.IGNORECASE | re.DOTALL,
)
CHARACTERS_PER_TOKEN = 4  # of English, for estimates only
TRIAL_TEXT = (
    "A mill stands by the river. Its wheel turns day and night, and the miller grinds the corn of the valley.\n\n" * 5
)


@dataclass(frozen=True)
class SourceDocument:
    """A document, or a passage of it, that a planned row is made from.

    Attributes:
        text: the document's text, or the passage's.
        key: the document's key, for `parents`.
        meta: the document's own `meta`.
        seeds: what it was made from, where it is generated text itself; else empty.
        passage: which passage this is, from 0.
        passages: how many the document has.
    """

    text: str
    key: bytes
    meta: Mapping[str, Any]
    seeds: Mapping[str, Any]
    passage: int = 0
    passages: int = 1


@dataclass(frozen=True)
class SourcedPrompt(Prompt):
    """A prompt that quotes a document: `quoted` is what it quotes, for `parse` to compare the answer with.

    It is no seed: lineage has it in the prompt, and by the parents' keys.
    """

    quoted: str = ""


class DocumentReader:
    """Reads the i-th document, or passage, of an artifact, in plan order.

    Args:
        documents: the artifact.
        kept: which documents count; others are passed over.
        passage_characters: cut documents into passages of at most about so many characters; 0 does not cut.
    """

    def __init__(self, documents: Artifact, kept: ScoreFilter, passage_characters: int = 0) -> None:
        self.documents, self.kept, self.passage_characters = documents, kept, passage_characters
        self._parts = [part for part in documents.parts if part.rows]
        self._before = [0, *itertools.accumulate(self._count(part) for part in self._parts)]
        self._loaded: tuple[int, pa.Table, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._before[-1]

    def __getitem__(self, ordinal: int) -> SourceDocument:
        """Return the `ordinal`-th passage. Raises IndexError if there is none."""
        if not 0 <= ordinal < len(self):
            raise IndexError(f"passage {ordinal} of {len(self)}")
        index = bisect.bisect_right(self._before, ordinal) - 1
        table, before = self._load(index)
        place = ordinal - self._before[index]
        row = int(np.searchsorted(before, place, side="right")) - 1
        passages, passage = int(before[row + 1] - before[row]), place - int(before[row])
        found = {name: table.column(name)[row].as_py() for name in table.column_names}
        text = found["text"]
        return SourceDocument(
            text=cut_passages(text, passages)[passage] if passages > 1 else text,
            key=found["key"],
            meta=json.loads(found["meta"]),
            seeds=json.loads(found["made_by"]["seeds"]) if found["made_by"] else {},
            passage=passage,
            passages=passages,
        )

    def _count(self, part: PartCommit) -> int:
        """Return how many passages a part has, reading as few columns as will tell."""
        if not self.passage_characters:
            if self.kept.scores is None:
                return part.rows
            return int(self.kept.kept(part, self._ids(part)).sum())
        table = self.documents.read(part, columns=["id", "text"])
        passages = self._passages(table)
        return int(passages[self.kept.kept(part, table.column("id").to_numpy())].sum())

    def _ids(self, part: PartCommit) -> np.ndarray:
        return self.documents.read(part, columns=["id"]).column("id").to_numpy()

    def _passages(self, table: pa.Table) -> np.ndarray:
        """Return how many passages each document has: a function of its length alone; int64 (documents,)."""
        if not self.passage_characters:
            return np.ones(table.num_rows, dtype=np.int64)
        lengths = pc.utf8_length(table.column("text")).to_numpy().astype(np.int64)
        return np.maximum(1, -(-lengths // self.passage_characters))

    def _load(self, index: int) -> tuple[pa.Table, np.ndarray]:
        """Return the documents of a part that count, and how many passages lie before each."""
        if self._loaded is None or self._loaded[0] != index:
            part = self._parts[index]
            table = self.documents.read(part, columns=["id", "key", "text", "made_by", "meta"])
            table = table.filter(self.kept.kept(part, table.column("id").to_numpy()))
            self._loaded = (index, table, np.concatenate([[0], np.cumsum(self._passages(table))]))
        return self._loaded[1], self._loaded[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}


class DocumentPromptSettings(PromptSettings):
    """Settings of every kind that is made from documents."""

    rows: int | None = Field(1_000_000_000, ge=1, description="At most so many rows, whatever the documents allow.")
    per_document: int = Field(1, ge=1, description="Rows planned for each document.")
    minimum_score: float | None = Field(
        None, description="With scores: use documents from this score on; default: the threshold that the scores name."
    )


class DocumentStage(PromptedStage):
    """A kind of generated text that is made from documents: `per_document` rows of each, in plan order.

    Subclasses write `prompt` with `source(row)`.
    """

    inputs: ClassVar[Mapping[str, Input]] = {
        "documents": Input("documents"),
        "scores": Input("attributes", optional=True),
    }
    settings: DocumentPromptSettings
    request_words: ClassVar[int] = 9
    """Fewest words of a sentence of the request that a text may not hold: else `copies-prompt`."""
    reader: DocumentReader | None = None

    @property
    def per_source(self) -> int:
        """Rows planned for each document, or for each passage where `passage_characters` cuts."""
        return self.settings.per_document

    @property
    def passage_characters(self) -> int:
        """Length of the passages that rows are counted through; 0: whole documents."""
        return 0

    def check(self) -> None:
        """As for any kind, with a made-up document in the place of those that are still to be made.

        It finds what is wrong with the template; a kind may well refuse that document, or miss something in it.
        """
        super().check()
        trial = copy.copy(self)
        trial.source = lambda row: (SourceDocument(TRIAL_TEXT, bytes(KEY_BYTES), {}, {}), 0)  # type: ignore[method-assign]
        try:
            trial.prompt(0)
        except RecipeError:
            raise
        except (Exception, SystemExit):  # documents of the kind that it wants will tell
            return

    @staticmethod
    def quoted(prompt: Prompt) -> str:
        """Return what a prompt of this stage quotes."""
        assert isinstance(prompt, SourcedPrompt), prompt
        return prompt.quoted

    def check_text(self, prompt: Prompt, text: str) -> None:
        """As for any kind, after a look for the request itself, which small models copy at the end of a reply."""
        if isinstance(prompt, SourcedPrompt) and prompt.messages:
            allowed = "\n".join((prompt.quoted, *prompt.required))
            if said := copied_sentence(text, prompt.messages[-1]["content"], allowed, self.request_words):
                raise Refused("copies-prompt", said[:200])
        super().check_text(prompt, text)

    def language_of(self, prompt: Prompt) -> str:
        """The kind's own language; of a kind that has none that of what the prompt quotes, where the identifier is sure of it."""
        if self.language or not isinstance(prompt, SourcedPrompt):
            return self.language
        return sure_language(prompt.quoted)

    def source(self, row: int) -> tuple[SourceDocument, int]:
        """Return what planned row `row` is made from, and which of the rows made from it this is, from 0."""
        assert self.reader is not None, "call open() first"
        ordinal, variant = divmod(row, self.per_source)
        return self.reader[ordinal], variant

    def planned(self, context: StageContext) -> int:
        """Each document `per_document` times, within `rows`."""
        self.open(context.inputs)  # on the driver, once: the count travels to the workers with the stage
        assert self.reader is not None
        if not len(self.reader):
            raise DataError(
                f"{self.name}: no document to write from reaches the score {self.reader.kept.threshold}"
                if self.reader.kept.scores
                else f"{self.name}: there are no documents to write from",
                "lower minimum_score, or look at the rejects of its inputs",
            )
        wanted, possible = self.settings.planned_rows, len(self.reader) * self.per_source
        if possible < wanted and "rows" in self.settings.model_fields_set:
            print(f"{self.name}: {possible:,} rows, not {wanted:,}: that many its documents give", file=sys.stderr)
        return min(wanted, possible)

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """As `planned`, from what the input is expected to hold."""
        documents = sum(found.rows or 0 for found in inputs.get("documents", ()))
        if self.passage_characters:
            tokens = sum(found.tokens or 0 for found in inputs.get("documents", ()))
            documents = max(documents, tokens * CHARACTERS_PER_TOKEN // self.passage_characters)
        return self.expected_of(min(self.settings.planned_rows, documents * self.per_source))

    def open(self, inputs: Mapping[str, Sequence[Artifact]]) -> None:
        """Find out where each document lies, unless the driver did; called once in each worker."""
        if self.reader is not None:
            return
        (documents,), scores = inputs["documents"], inputs.get("scores", ())
        kept = ScoreFilter(self.name, documents, scores[0] if scores else None, self.settings.minimum_score)
        self.reader = DocumentReader(documents, kept, self.passage_characters)


def cut_passages(text: str, count: int) -> list[str]:
    """Cut a text into `count` passages of about equal length, at paragraph ends where one is near, else at sentence ends.

    Nothing is lost: the passages joined are the text. Near is within a quarter of a passage; where neither end is near,
    the cut is between words, and inside a word if it is longer than that.
    """
    size = len(text) / count
    cuts = [0]
    for number in range(1, count):
        target = round(number * size)
        low, high = max(cuts[-1], round(target - size / 4)), round(target + size / 4)
        places = next(
            (
                ends
                for pattern in (PARAGRAPH_END, SENTENCE_END, re.compile(r"\s+"))
                if (ends := [found.end() for found in pattern.finditer(text, low, high) if found.end() < len(text)])
            ),
            [target],
        )
        cuts.append(min(places, key=lambda place: abs(place - target)))
    return [text[low:high] for low, high in itertools.pairwise([*cuts, len(text)])]


def extract(text: str, characters: int) -> str:
    """Return the beginning of a text, at most `characters` long, cut after a paragraph if that leaves half of it, else
    after a sentence, else between words."""
    text = text.strip()
    if len(text) <= characters:
        return text
    head = text[: characters + 1]
    for pattern, least in ((PARAGRAPH_END, characters // 2), (SENTENCE_END, characters // 4), (re.compile(r"\s+"), 1)):
        ends = [found.start() + _closing(found.group()) for found in pattern.finditer(head)]
        ends = [end for end in ends if least <= end <= characters]
        if ends:
            return head[: ends[-1]].rstrip()
    return head[:characters]


def without_markup(text: str) -> str:
    """Return a text without the images, link targets and tags of Markdown, reStructuredText and HTML."""
    text = TAG.sub("", LINK.sub(lambda found: found[1] or found[2] or "", IMAGE.sub("", text)))
    return re.sub(r"[ \t]+$", "", re.sub(r"\n[ \t]*\n\s*\n", "\n\n", text), flags=re.MULTILINE)


def _closing(end: str) -> int:
    """Length of the closing marks that stand before the white space of a sentence end."""
    return len(end) - len(end.lstrip("\"'”’)]"))
