"""Makes conversations, or pairs of answers, of published instruction sets, read whole by a `files` stage (`text_field: "*"`).

The record of turns lies in each document's `meta`; training renders it with the model's own chat template, so that a set
never brings a template of its own. Rows of another format, unknown roles and empty turns are rejects.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_meta, chat_of, plain_text
from hornbook.documents import Document, Reject, content_key, document_id, documents_table, planned_row, rejects_table
from hornbook.parts import PartCommit, PartContent, PartRange
from hornbook.partwork import PartMaker
from hornbook.preference import DOCUMENT_KIND, preference_meta, preference_of, preference_text
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Produces, Stage, StageContext, StageResult
from training.chat_formats import FORMATS, Conversations, Row, oasst_messages

PAIRS = "preferences"
SHOWN = 200  # characters of a rejected row
MOST_CONVERSATIONS = 1 << 16  # of one row

FormatName = Literal[
    "magicoder", "coig-cqia", "slim-orca", "ultra-chat", "evol-instruct-code", "commit-pack-ft", "open-hermes", "oasst2",
    "math-instruct", "api-gen", "glaive", "the-stack-smol", "messages", "preferences",
]  # fmt: skip


class ChatRecordsSettings(Settings):
    """Which set the rows are of."""

    format: FormatName = Field(
        ...,
        description="How the rows are laid out; `messages`: a list of {role, content}; `preferences`: prompt, chosen, rejected.",
    )
    source: str = Field("", description="What mixtures and reports call them; default: the format's name.")
    max_turns: int = Field(64, ge=2, description="A conversation of more turns is rejected.")
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class ChatRecords(Stage):
    """Turns rows of an instruction set into conversations."""

    kind = "chat-records"
    produces: ClassVar[Produces] = "documents"
    Settings = ChatRecordsSettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents")}
    settings: ChatRecordsSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many rows as there are documents; a tree gives several conversations."""
        rows = inputs["documents"][0].rows
        return Expected(planned=rows, unit="rows", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Make of each part of the rows a part of the same range."""
        documents = context.input("documents")
        maker = ChatRecordsPart(self.settings, documents)
        totals = context.make_parts(maker, [part.range for part in documents.parts], unit="rows")
        return StageResult(metrics={name: int(value) for name, value in totals.counts.items()})


class ChatRecordsPart(PartMaker):
    """Makes the conversations of the rows of one part."""

    def __init__(self, settings: ChatRecordsSettings, documents: Artifact) -> None:
        self.settings, self.documents = settings, documents
        self.max_workers = settings.workers

    def setup(self) -> None:
        """Index the rows' parts, in order."""
        self.parts: list[PartCommit] = list(self.documents.parts)
        self.places = {part.start: place for place, part in enumerate(self.parts)}

    def make(self, part: PartRange) -> PartContent:
        """Return the part's conversations, and the rows that give none."""
        place = self.places[part.start]
        documents: list[Document] = []
        rejects: list[Reject] = []
        empty = 0
        rows = list(self._rows(place))
        for identifier, keys, row in (
            self._trees(place, rows) if self._flat(rows) else ((i, [k], r) for i, k, r in rows)
        ):
            unit = planned_row(identifier)
            if row is None:
                empty += 1
                continue
            try:
                documents += self._conversations(unit, keys, row)
            except ValueError as error:
                shown = json.dumps(row, ensure_ascii=False)[:SHOWN] if isinstance(row, Mapping) else str(row)[:SHOWN]
                rejects.append(Reject(unit, f"row {unit}", "bad-row", str(error), shown))
        return PartContent(
            documents_table(documents),
            rejects_table(rejects),
            planned=[planned_row(identifier) for identifier, _, _ in rows],
            empty=empty,
            counts={"conversations": len(documents), "turns": sum(len(d.meta.get("chat", ())) for d in documents)},
        )

    def _conversations(self, unit: int, keys: list[bytes], row: Any) -> list[Document]:
        """Return a row's conversations as documents. Raises ValueError where the row or all of them are bad."""
        if isinstance(row, str):
            raise ValueError(row)
        source = self.settings.source or self.settings.format
        if self.settings.format == PAIRS:
            pair = preference_of(json.dumps(row))
            text, meta = preference_text(pair), preference_meta(pair)
            key = content_key(text.encode())
            return [Document(document_id(unit), key, text, source, DOCUMENT_KIND, tuple(keys), meta=meta)]
        found: Conversations = FORMATS[self.settings.format](row)
        if isinstance(found, str):
            if not found.strip():
                raise ValueError("the text is empty")
            return [
                Document(document_id(unit), content_key(found.encode()), found, source, "text", parents=tuple(keys))
            ]
        made: list[Document] = []
        problems: list[str] = []
        for chat in found[:MOST_CONVERSATIONS]:
            try:
                require_chat(chat, self.settings.max_turns)
            except ValueError as error:  # one path of a tree; the others may be good
                problems.append(str(error))
                continue
            text = plain_text(chat)
            key = content_key(text.encode())
            meta = chat_meta(chat)
            made.append(Document(document_id(unit, len(made)), key, text, source, "chat", tuple(keys), meta=meta))
        if not made:
            raise ValueError(problems[0] if problems else "there is no turn")
        return made

    def _rows(self, place: int) -> Iterator[tuple[int, bytes, Any]]:
        """Yield (id, key, the row or what is wrong with it) of a part."""
        table = self.documents.read(self.parts[place], columns=["id", "key", "text"])
        for identifier, key, text in zip(*(column.to_pylist() for column in table.columns), strict=True):
            yield identifier, key, _parsed(text)

    def _flat(self, rows: Sequence[tuple[int, bytes, Any]]) -> bool:
        """Tell whether these are OpenAssistant's single messages, of which a tree must be made first."""
        return self.settings.format == "oasst2" and any(
            isinstance(row, Mapping) and "message_id" in row and "prompt" not in row for _, _, row in rows
        )

    def _trees(self, place: int, rows: Sequence[tuple[int, bytes, Any]]) -> Iterator[tuple[int, list[bytes], Any]]:
        """Yield a tree at the row of its first message and None for its others; messages of a tree follow each other.

        A tree belongs to the part in which it begins; the rest of it is read from the parts behind.
        """
        before = _last_tree(self._rows(place - 1)) if place else None
        groups: list[tuple[Any, list[tuple[int, bytes, Any]]]] = []
        for found in rows:
            tree = _tree(found[2])
            if groups and tree is not None and groups[-1][0] == tree:
                groups[-1][1].append(found)
            else:
                groups.append((tree, [found]))
        for number, (tree, messages) in enumerate(groups):
            if number == 0 and tree is not None and tree == before:
                yield from ((identifier, [key], None) for identifier, key, _ in messages)
                continue
            more = self._behind(place, tree) if number == len(groups) - 1 and tree is not None else []
            whole = [*messages, *more]
            try:
                row: Any = oasst_messages([row for _, _, row in whole]) if tree is not None else whole[0][2]
            except ValueError as error:
                row = str(error)
            yield messages[0][0], [key for _, key, _ in whole], row
            yield from ((identifier, [key], None) for identifier, key, _ in messages[1:])

    def _behind(self, place: int, tree: Any) -> list[tuple[int, bytes, Any]]:
        found: list[tuple[int, bytes, Any]] = []
        for later in range(place + 1, len(self.parts)):
            for row in self._rows(later):
                if _tree(row[2]) != tree:
                    return found
                found.append(row)
        return found


def require_chat(chat: Sequence[Message], max_turns: int) -> None:
    """Refuse a conversation that nobody can learn from.

    Raises:
        ValueError: an empty turn, too many turns, no turn of the assistant, one speaker twice in a row, or a system
            prompt that is not first.
    """
    chat_of(json.dumps(chat_meta(chat)))
    if len(chat) > max_turns:
        raise ValueError(f"{len(chat)} turns, max_turns is {max_turns}")
    for number, (one, other) in enumerate(itertools.pairwise(chat)):
        if other["role"] == "system":
            raise ValueError(f"turn {number + 1}: a system prompt that is not first")
        if one["role"] == other["role"] == "assistant":
            raise ValueError(f"turn {number + 1}: the assistant speaks twice")


def _parsed(text: str) -> Row | str:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f'the document is no JSON ({error}); read the set with `files` and `text_field: "*"`'
    return row if isinstance(row, Mapping) else 'the document is no JSON object; read the set with `text_field: "*"`'


def _tree(row: Any) -> Any:
    return row.get("message_tree_id") if isinstance(row, Mapping) else None


def _last_tree(rows: Iterator[tuple[int, bytes, Any]]) -> Any:
    last = None
    for _, _, row in rows:
        last = _tree(row)
    return last
