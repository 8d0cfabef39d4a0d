"""The language of every document, as columns beside it: offline, with a score, and whether a keep list has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import Field

from classifiers.attributes import TextAttributes
from hornbook.artifact import Artifact
from hornbook.errors import RecipeError
from hornbook.language import UNKNOWN, identify, known_codes
from hornbook.partwork import Totals
from hornbook.settings import Settings, nearest, runtime

SCHEMA = pa.schema([("language", pa.string()), ("language_score", pa.float32()), ("language_kept", pa.bool_())])
SAID = "documents in "
KEPT = "documents kept"


class LanguageSettings(Settings):
    """Which languages are wanted."""

    keep: tuple[str, ...] = Field(
        (),
        description="ISO 639 codes of the languages to keep (`en`, `de`, `zh`); `und` keeps what cannot be judged, as tables "
        "and some code. Empty keeps all. Nothing is dropped here: `language_kept` says what the list means for a document.",
    )
    min_score: float = Field(
        0.0, ge=0, le=1, description="`language_kept` also wants this `language_score`; of `und` none is wanted."
    )
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class Language(TextAttributes):
    """Columns `language` (ISO 639 code, or `und`), `language_score` (0 to 1) and `language_kept`."""

    kind = "language"
    Settings = LanguageSettings
    settings: LanguageSettings

    def check(self) -> None:
        """Refuse a keep list with codes that no document can get."""
        for code in self.settings.keep:
            if code not in known_codes() and code != UNKNOWN:
                raise RecipeError(
                    f"{self.name}.keep: no language {code!r}{nearest(code, [*known_codes(), UNKNOWN])}",
                    "ISO 639 codes of two letters, without script or region",
                )

    def schema(self) -> pa.Schema:
        """Return the three columns."""
        return SCHEMA

    def attributes(self, text: str) -> Mapping[str, Any]:
        """Return the language of a text, the share of its words that are in it, and whether it is wanted."""
        code, score = judged(text)
        keep = self.settings.keep
        kept = (not keep or code in keep) and (code == UNKNOWN or score >= self.settings.min_score)
        return {"language": code, "language_score": score, "language_kept": kept}

    def counts(self, found: pa.Table) -> Mapping[str, float]:
        """Return how many documents are in each language, and how many are kept."""
        said = Counter(SAID + code for code in found.column("language").to_pylist())
        return {**said, KEPT: sum(found.column("language_kept").to_pylist())}

    def figures(self, artifact: Artifact, totals: Totals) -> Mapping[str, Any]:
        """Return the documents by language, the commonest first, and how many are kept."""
        by_language = {
            name.removeprefix(SAID): int(count) for name, count in totals.counts.items() if name.startswith(SAID)
        }
        commonest = dict(sorted(by_language.items(), key=lambda entry: (-entry[1], entry[0])))
        return {"documents_by_language": commonest, "kept": int(totals.counts.get(KEPT, 0))}


def judged(text: str) -> tuple[str, float]:
    """Return the language of a text and the share of its words in it: `und` and 0 where the identifier is not sure.

    Markup and code hide words: names and keywords that are no words of a language make the identifier unsure, and then it
    says so. A file of source code gets the language of its comments and names where those say enough.
    """
    found = identify(text)
    if not found.reliable or found.code not in known_codes():
        return UNKNOWN, 0.0
    return found.code, found.percent / 100
