"""Evaluation sets: the items that no training document may hold, read from the user's own files or a corpus.

A set that would find nothing, since a field is misspelled or all its texts are empty, is an error and never silence.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError
from hornbook.settings import Settings, nearest
from hornbook.stages import own_file

CODE = "code"
"""What `ItemText.field` says of an item's program."""

ITEMS_SCHEMA = pa.schema(
    [
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32())),  # of a program, where documents are embedded
    ]
)


class EvaluationSet(Settings):
    """A file of items, and where in each the text is."""

    name: str = Field(..., min_length=1, description="What hits call the set.")
    path: str = Field(..., description="A JSONL (.jsonl, .jsonl.gz) or Parquet file; from the recipe's folder or here.")
    id_field: str = Field(
        "id", description="The field with an item's id; empty: items are called by their row, from 1."
    )
    fields: tuple[str, ...] = Field(("text",), description="Fields whose texts are looked for, each on its own.")
    code_fields: tuple[str, ...] = Field(
        (), description="Fields that, joined in this order, are an item's Python program (prompt, canonical_solution)."
    )


@dataclass(frozen=True)
class ItemText:
    """A text of an item that is looked for in documents."""

    benchmark: str
    item: str
    field: str
    text: str


def read_evaluation_set(given: EvaluationSet, folder: Path | None, where: str) -> list[ItemText]:
    """Read the texts of a file's items, in order.

    Args:
        given: the file and its fields.
        folder: where a relative path is looked for before the current folder.
        where: names the setting, for messages.

    Raises:
        RecipeError: there is no such file, or no item has a field that is named.
        DataError: the file is damaged, has no item, a field holds no text, or two items share an id.
    """
    path = own_file(given.path, folder)
    if path is None:
        raise RecipeError(
            f"{where}: there is no file {given.path}", "a path from the recipe's folder or the current one"
        )
    if not (given.fields or given.code_fields):
        raise RecipeError(f"{where}: the evaluation set {given.name!r} has neither fields nor code_fields")
    known: dict[str, None] = {}
    found: list[ItemText] = []
    seen: set[str] = set()
    filled: set[str] = set()
    rows = 0
    for rows, row in enumerate(_rows(path), 1):
        place = f"{path} row {rows}"
        known.update(dict.fromkeys(row))
        item = _identifier(row, given, rows, place)
        if item in seen:
            raise DataError(f"{place}: another item is called {item!r}, too", "name another id_field, or an empty one")
        seen.add(item)
        texts = {field: _text(row.get(field), field, place) for field in (*given.fields, *given.code_fields)}
        filled.update(field for field, text in texts.items() if text.strip())
        found += [ItemText(given.name, item, field, texts[field]) for field in given.fields if texts[field].strip()]
        program = "".join(texts[field] for field in given.code_fields)
        if program.strip():
            found.append(ItemText(given.name, item, CODE, program))
    if not rows:
        raise DataError(f"{path}: the evaluation set {given.name!r} has no item", "an empty set would find nothing")
    for field in (*given.fields, *given.code_fields):
        if field not in known:
            raise RecipeError(f"{where}: no item of {path} has the field {field!r}{nearest(field, list(known))}")
        if field not in filled:
            raise DataError(f"{path}: the field {field!r} is empty in all {rows} items", "name a field that holds text")
    return found


def artifact_texts(name: str, corpus: Artifact, code: bool) -> list[ItemText]:
    """Return the documents of a corpus as items, called by their ids, and once more as programs if they are `code`.

    Raises:
        DataError: there is none.
    """
    found = []
    for table in corpus.tables(columns=["id", "text"]):
        for row in table.to_pylist():
            fields = ("text", CODE) if code else ("text",)
            found += [ItemText(name, str(row["id"]), field, row["text"]) for field in fields if row["text"].strip()]
    if not found:
        raise DataError(f"the evaluation set {name!r} has no item", "an empty set would find nothing")
    return found


def items_table(texts: Iterable[ItemText], vectors: Mapping[int, Sequence[float]] | None = None) -> pa.Table:
    """Return texts as a table of ITEMS_SCHEMA, in order; `vectors` by the number of their text."""
    rows = [{**vars(text), "vector": vectors.get(number) if vectors else None} for number, text in enumerate(texts)]
    return pa.Table.from_pylist(rows, schema=ITEMS_SCHEMA)


def _identifier(row: Mapping[str, Any], given: EvaluationSet, number: int, place: str) -> str:
    if not given.id_field:
        return str(number)
    value = row.get(given.id_field)
    if value is None or value == "":
        raise DataError(
            f"{place}: the item has no {given.id_field!r}{nearest(given.id_field, list(row))}",
            "set id_field; an empty one calls items by their row",
        )
    return str(value)


def _text(value: Any, field: str, place: str) -> str:
    """Return a field's text: itself, a list of texts line by line (answers to choose from), nothing for nothing."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise DataError(f"{place}: the field {field!r} holds {type(value).__name__}, not text", "name another field")
    return value.encode("utf-8", "replace").decode()  # JSON can spell half a character


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.name.endswith(".parquet"):
        try:
            yield from pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}", "write it again") from error
        return
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise RecipeError(
            f"{path} is neither .jsonl, .jsonl.gz nor .parquet", "convert the evaluation set to one of them"
        )
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _object(line, f"{path} line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", "write it again") from error


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place} is no JSON: {error}", "mend the evaluation set: an item left out is never found"
        ) from None
    if not isinstance(value, dict):
        raise DataError(f"{place} is no JSON object", "an item is an object with an id and texts")
    return value
