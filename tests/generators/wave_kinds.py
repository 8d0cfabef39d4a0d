"""Kinds for the tests of waves; a module of its own, because Ray's workers import it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field

from generators.prompted import Ask, Parsed, Prompt, PromptedStage, PromptSettings, Refused
from hornbook.engines.interface import EngineSettings
from hornbook.plan import Combinations, derive_seed


class NumberSettings(PromptSettings):
    """Settings of `numbers`."""

    refused: int = Field(0, description="Of ten rows, so many are refused.")
    second: EngineSettings | None = Field(None, description="Asked a second question.")


class Numbers(PromptedStage):
    """A prompt per row that names its number and what the kind has learned."""

    kind: ClassVar[str] = "numbers"
    cells: ClassVar[tuple[str, ...]] = ("parity",)
    Settings = NumberSettings
    settings: NumberSettings

    def prompt(self, row: int) -> Prompt:
        seeds = {"row": row, "parity": row % 2}
        known = self.decisions.get("heard", "nothing")
        return Prompt(({"role": "user", "content": f"Row {row}, having heard {known}."},), seeds)

    async def write(self, prompt: Prompt, ask: Ask) -> Parsed:
        parsed = await super().write(prompt, ask)
        if self.settings.second is None:
            return parsed
        reply = await ask(({"role": "user", "content": f"Judge: {parsed.text}"},), engine="second", choices=("1", "2"))
        return Parsed(parsed.text, {"judged": reply.text})

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        if derive_seed(prompt.seeds["row"], "refused") % 10 < self.settings.refused:
            raise Refused("unlucky")
        return Parsed(text)


class Broken(Numbers):
    """Fails in each row."""

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        raise RuntimeError("no luck")


class Wordy(Numbers):
    """Asks with twenty words more."""

    def prompt(self, row: int) -> Prompt:
        return Prompt(({"role": "user", "content": f"Row {row}{' please' * 20}"},), {"row": row, "parity": row % 2})


class Twelve(Numbers):
    """Has twelve distinct prompts."""

    kind: ClassVar[str] = "twelve"

    @property
    def combinations(self) -> Combinations:
        return Combinations((3, 4), 0)


class Learners(Numbers):
    """Tells the next wave how many rows this one gave, and what the last of them was."""

    kind: ClassVar[str] = "learners"

    def learn(self, accepted: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [document["seeds"]["row"] for document in accepted]
        return {"heard": f"{len(rows)} up to {max(rows)}"}


class Sayings(Numbers):
    """Says one of three things."""

    kind: ClassVar[str] = "sayings"

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        thing = ("the river runs down to the sea", "a clock tells the hours of the day", "bread is made of flour")
        return Parsed(f"They say that {thing[prompt.seeds['row'] % 3]}, and so it is, they say.")
