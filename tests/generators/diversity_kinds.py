"""A kind whose first rows mean one thing and whose later rows mean many."""

from __future__ import annotations

from typing import ClassVar

from generators.prompted import Parsed, Prompt, PromptedStage, PromptSettings

COATS = ("grey", "black", "white", "striped", "spotted", "ginger", "silver", "brown", "small", "fluffy")
PLACES = ("the sofa", "a warm mat", "her lap", "the bed", "a soft rug", "the chair", "a cushion", "the window sill")
SUBJECTS = (
    "The volcano threw ash over",
    "A court ruled on the mortgage of",
    "Engineers tested the turbine for",
    "The violin concerto was played in",
    "Enzymes split the proteins of",
    "A goalkeeper saved the match against",
    "The algorithm sorts the records of",
    "Whales migrate each winter past",
    "Bakers knead the rye dough for",
    "The treaty ended the war with",
)
OBJECTS = ("Iceland", "the bank", "eight dentists", "a satellite", "the old theatre", "Brazil", "the museum", "farmers")


class PetsThenAll(PromptedStage):
    """80 rows on cats that sleep, then 80 on whatever there is."""

    kind: ClassVar[str] = "pets-then-all"
    Settings = PromptSettings

    def prompt(self, row: int) -> Prompt:
        """Ask for nothing in particular; the row is the seed."""
        return Prompt(({"role": "user", "content": f"Row {row}."},), {"row": row})

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Return what the row says, whatever was answered."""
        one, other = divmod(prompt.seeds["row"] % 80, 8)
        if prompt.seeds["row"] < 80:
            return Parsed(f"The {COATS[one]} cat slept on {PLACES[other]} and purred.")
        return Parsed(f"{SUBJECTS[one]} {OBJECTS[other]}.")
