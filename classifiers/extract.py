"""Raw documents to plain text: main text out of HTML, encodings repaired, characters and white space cleaned up.

Part in, part out; every document keeps its id, its metadata and what made it. Its key follows from its new text, and the
raw document's key is its parent. What gives no text is a reject.
"""

from __future__ import annotations

import importlib.metadata
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from classifiers.beside import require_unique
from classifiers.cleaning import CleaningSettings, clean, drop_controls, repair_encoding
from classifiers.main_text import MainText, NoMainText
from classifiers.markup import is_html
from hornbook.artifact import Artifact
from hornbook.documents import DOCUMENT_SCHEMA, Reject, canonical_json, content_key, rejects_table
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

PLAIN = "plain"  # what extracted a document that was no HTML
SHOWN_TEXT = 1000  # characters of what was produced, in a reject


class ExtractSettings(Settings):
    """What extracts, under which limits, and what is cleaned."""

    extractor: Literal["trafilatura", "resiliparse", "none"] = Field(
        "trafilatura",
        description="What finds the main text of HTML: trafilatura for precision, resiliparse for speed; none leaves markup "
        "as it is.",
    )
    html: Literal["auto", "always"] = Field(
        "auto",
        description="auto: what is HTML by its content type, its file name or its beginning is extracted, all else is only "
        "cleaned; always: every document is HTML.",
    )
    seconds: float = Field(
        10.0, gt=0, description="Processor seconds that extraction may take for a document; then it is rejected."
    )
    memory_mib: int = Field(2048, ge=256, description="Memory that the extracting process may take, MiB.")
    min_characters: int = Field(1, ge=1, description="A text with fewer characters after cleaning is rejected.")
    cleaning: CleaningSettings = Field(CleaningSettings(), description="The rules that clean the text.")
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class Extract(Stage):
    """Extracts and cleans every document of its input."""

    kind = "extract"
    produces = "documents"
    Settings = ExtractSettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents")}
    settings: ExtractSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many documents as there are: how many give no text is not known before."""
        rows = inputs["documents"][0].rows
        return Expected(planned=rows, unit="documents", rows=rows)

    def extra_identity(self) -> dict[str, str]:
        """Return the versions of what extracts and repairs: another one gives other texts."""
        used: list[str] = [] if self.settings.extractor == "none" else [self.settings.extractor]
        used += ["ftfy"] if self.settings.cleaning.encoding else []
        found = {f"version of {name}": importlib.metadata.version(name) for name in used}
        if self.settings.cleaning.unicode != "none":
            found["version of Unicode"] = unicodedata.unidata_version
        return found

    def run(self, context: StageContext) -> StageResult:
        """Make of each part of the input a part of the same range."""
        documents = context.input("documents")
        maker = ExtractPart(self.settings, documents)
        totals = context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        counts = {name: int(value) for name, value in totals.counts.items()}
        changed = {
            name.removeprefix("changed by "): value for name, value in counts.items() if name.startswith("changed by ")
        }
        metrics = {
            "extracted_from_html": counts.get("html", 0),
            "characters_in": counts.get("characters_in", 0),
            "characters_out": counts.get("characters", 0),
            "documents_changed_by": changed,
        }
        return StageResult(metrics=metrics)


class ExtractPart(PartMaker):
    """Extracts and cleans the documents of one input part."""

    kind = Extract.kind

    def __init__(self, settings: ExtractSettings, documents: Artifact) -> None:
        self.settings, self.documents = settings, documents
        self.max_workers = settings.workers

    def setup(self) -> None:
        """Prepare the extractor; its process starts with the first HTML."""
        settings = self.settings
        self.main_text = MainText(settings.extractor, settings.seconds, settings.memory_mib)

    def make(self, part: PartRange) -> PartContent:
        """Return the cleaned documents in the input's order, with its ids, and rejects."""
        raw = self.documents.read(self.documents.parts_by_start[part.start], columns=DOCUMENT_SCHEMA.names).select(
            DOCUMENT_SCHEMA.names
        )
        require_unique(raw, f"{self.documents.folder}, part {part.start}")
        ids = raw.column("id").to_pylist()
        counts: Counter[str] = Counter()
        kept: list[bool] = []
        texts: list[str] = []
        metas: list[str] = []
        rejects: list[Reject] = []
        pairs = zip(ids, raw.column("text").to_pylist(), raw.column("meta").to_pylist(), strict=True)
        for identifier, text, raw_meta in pairs:
            counts["characters_in"] += len(text)
            meta = json.loads(raw_meta)
            try:
                text, done = self.plain(text, meta)
            except NoMainText as error:
                rejects.append(Reject(identifier, "document", error.reason, error.detail, text[:SHOWN_TEXT]))
                kept.append(False)
                continue
            kept.append(True)
            texts.append(text)
            metas.append(canonical_json({**meta, **done}))
            counts["characters"] += len(text)
            counts["html"] += done["extracted_by"] != PLAIN
            counts.update(f"changed by {rule}" for rule in done["cleaned"])
        return PartContent(
            table=_changed(raw.filter(pa.array(kept, pa.bool_())), texts, metas),
            rejects=rejects_table(rejects),
            planned=ids,
            unit_of=same_ids,
            counts=counts,
        )

    def plain(self, text: str, meta: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return a document's plain text, and what was done: `extracted_by`, and `cleaned`, the rules that changed it.

        Raises:
            NoMainText: it gives too little text, or extraction failed.
        """
        settings = self.settings
        from_html = settings.extractor != "none" and (settings.html == "always" or is_html(text, meta))
        if from_html:
            # Parsers stumble over NUL bytes, and turn the hard space that is a part of `Ã ` into a plain one.
            html = repair_encoding(text) if settings.cleaning.encoding else text
            text = self.main_text(drop_controls(html))
        title = meta.get("title")
        text, cleaned = clean(text, settings.cleaning, from_html, title if isinstance(title, str) else "")
        if not text.strip():
            raise NoMainText("no-text", "no main text was found in it" if from_html else "nothing is left of it")
        if len(text) < settings.min_characters:
            raise NoMainText("too-short", f"{len(text)} characters, min_characters is {settings.min_characters}")
        return text, {"extracted_by": settings.extractor if from_html else PLAIN, "cleaned": cleaned}


def _changed(raw: pa.Table, texts: Sequence[str], metas: Sequence[str]) -> pa.Table:
    """Return documents with other texts and metadata, the keys that follow from those texts, and their own as parents."""
    keys = [content_key(text.encode()) for text in texts]
    parents = [[key] for key in raw.column("key").to_pylist()]
    for name, values in (("key", keys), ("text", texts), ("parents", parents), ("meta", metas)):
        field = DOCUMENT_SCHEMA.field(name)
        raw = raw.set_column(DOCUMENT_SCHEMA.get_field_index(name), field, pa.array(values, field.type))
    return raw
