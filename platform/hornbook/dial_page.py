"""`hornbook dial`: turn the threshold of scored documents and see what stays, on a page of this machine or as a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hornbook.artifact import ARTIFACTS, Artifact
from hornbook.dial_figures import DIAL, FEW, FORMAT, about, dial_figures, figures_at, held_out_grades, nearest_step
from hornbook.dial_recipe import Place, RecipeOnDisk, number_text, what_to_add
from hornbook.dial_samples import Reference, border, read_texts
from hornbook.errors import DataError, RecipeError, StoreError
from hornbook.inspection import find_artifact
from hornbook.local_page import LocalPage
from hornbook.run_view import clean
from hornbook.store import Store

SAMPLES = 4
"""Documents shown on each side of the border."""
SHOWN_CHARACTERS = 6000


class Dial:
    """The figures of one scored artifact, the documents behind them, and the recipe to write into, if one is named.

    Args:
        name: the scored artifact: its folder or a prefix, or RUN/STAGE.
        recipe: name or path of the recipe to write into.
        say: told when the figures must be counted first.

    Raises:
        StoreError: there is no such artifact, or it is not finished.
        DataError: it holds no scores.
        RecipeError: the recipe is wrong, or was not what made these scores.
    """

    def __init__(self, store: Store, name: str, recipe: str | None, say: Callable[[str], None]) -> None:
        self.scored = find_artifact(store, name)
        manifest = self.scored.manifest
        run, _, stage = name.partition("/")
        self.stage = stage if stage and run != ARTIFACTS else manifest.stage
        if not any(column in ("score: float", "score: double") for column in manifest.columns):
            raise DataError(
                f"{manifest.stage} ({manifest.kind}) holds no scores",
                "name the artifact of a `score` stage: latest/scores",
            )
        self.documents = _input(self.scored, "documents")
        self.recipe = RecipeOnDisk(recipe) if recipe is not None else None
        self.places = {place.name: place for place in self.recipe.places(self.stage)} if self.recipe else {}
        if self.recipe:
            self.recipe.require_same(self.stage, manifest.kind, _made_from(self.scored))
        self.figures = self._figures(say)

    def page(self, port: int = 0) -> LocalPage:
        """Return the page, listening. Raises RecipeError if the port is taken."""
        return LocalPage(
            "dial.html",
            ["report.css", "dial.css", "dial.js", "dial_charts.js"],
            reads={"figures": lambda query: self.all_figures(), "samples": self.samples, "change": self.change},
            writes={"write": self.write},
            port=port,
        )

    def all_figures(self) -> dict[str, Any]:
        """Return what the page needs once."""
        return {
            **{key: value for key, value in self.figures.items() if key != "references"},
            "stage": self.stage,
            "corpus": self.documents.manifest.stage if self.documents.complete else "",
            "recipe": str(self.recipe.path) if self.recipe else None,
            "few": FEW,
        }

    def samples(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Return documents just above the border (lowest scores first) and just below (highest first), with their texts."""
        step = self._step(query)
        above, below = border(self.figures, step, SAMPLES)
        texts = read_texts(self.documents, [*above, *below])
        return {
            "above": [self._sample(entry, texts) for entry in above],
            "below": [self._sample(entry, texts) for entry in below],
        }

    def change(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Return the places that take the threshold, and the change to the recipe if it is written into the chosen ones."""
        value = self._value(query)
        names = query.get("places")
        chosen = [name for name in names.split(",") if name] if names is not None else self._default_places()
        known = [
            {"name": place.name, "now": place.now, "sources": place.sources, "chosen": place.name in chosen}
            for place in self.places.values()
        ]
        answer: dict[str, Any] = {"value": number_text(value), "places": known, "diff": [], "problem": "", "add": ""}
        if not known:
            answer["add"] = what_to_add(self.stage, value)
        elif self.recipe is not None and chosen:
            try:
                answer["diff"] = self.recipe.diff(self.recipe.changed(self._chosen(chosen), value))
            except RecipeError as error:
                answer["problem"] = str(error)
        return answer

    def write(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Write the threshold into the chosen places (all that are for every source, where none are named).

        Returns the recipe's path, and the change as the lines of a diff.

        Raises:
            RecipeError: no recipe is open, no place takes the threshold, or the file has changed since it was opened.
        """
        value = self._value(query)
        if self.recipe is None:
            raise RecipeError("no recipe is open", "start the dial with --recipe FILE")
        names = query.get("places", self._default_places())
        if not names:
            why = "nothing is chosen" if self.places else f"nothing in it takes a threshold of {self.stage}"
            cure = "choose a place" if self.places else what_to_add(self.stage, value)
            raise RecipeError(f"{self.recipe.path}: {why}", cure)
        text = self.recipe.changed(self._chosen(names), value)
        diff = self.recipe.diff(text)
        self.recipe.write(text)
        self.places = {place.name: place for place in self.recipe.places(self.stage)}
        return {"path": str(self.recipe.path), "diff": diff}

    def written_lines(self, at: float, write: bool) -> list[str]:
        """Return what writing the threshold changes, as lines for the terminal; with `write`, after having written it."""
        if write:
            written = self.write({"at": at})
            return [*written["diff"], f"written into {written['path']}"]
        change = self.change({"at": at})
        if change["problem"] or change["add"]:
            return [change["problem"] or f"nothing in the recipe takes a threshold of {self.stage}: {change['add']}"]
        return change["diff"] or ["the recipe has this threshold already"]

    def _figures(self, say: Callable[[str], None]) -> dict[str, Any]:
        store, name = self.scored.store, f"{self.scored.folder}/{DIAL}"
        if store.exists(name):
            found = store.read_json(name)
            if isinstance(found, dict) and found.get("format") == FORMAT:
                return found
        if not self.documents.complete:
            raise StoreError(f"the documents behind {self.scored.folder} are gone", "run the recipe again")
        say(f"counting {self.scored.manifest.counts.get('rows', 0):,.0f} scores ...")
        trained = self.scored.manifest.inputs.get("scorer")
        graded = held_out_grades(Artifact(store, trained[0].folder)) if trained else None
        figures = dial_figures(self.scored, self.documents, graded)
        with contextlib.suppress(StoreError):  # a store that may only be read: they are counted again next time
            store.write_json(name, figures)
        return figures

    def step(self, at: float) -> int:
        """Return the number of the step nearest to a threshold.

        Raises:
            RecipeError: it is no number, or lies outside the dial.
        """
        low, high = self.figures["thresholds"][0], self.figures["thresholds"][-1]
        if not low <= at <= high:  # NaN, too
            raise RecipeError(f"{at:g} is no threshold of {self.stage}", f"a number from {low:g} to {high:g}")
        return nearest_step(self.figures, at)

    def _step(self, query: Mapping[str, Any]) -> int:
        try:
            at = float(query["at"])
        except (KeyError, TypeError, ValueError):
            raise RecipeError(f"at: {query.get('at')!r} is not a threshold") from None
        return self.step(at)

    def _value(self, query: Mapping[str, Any]) -> float:
        return float(self.figures["thresholds"][self._step(query)])

    def _default_places(self) -> list[str]:
        return [place.name for place in self.places.values() if not place.sources]

    def _chosen(self, names: Any) -> list[Place]:
        unknown = [name for name in names if name not in self.places]
        if unknown:
            raise RecipeError(f"{', '.join(map(str, unknown))}: no such place", "open the dial again")
        return [self.places[name] for name in names]

    def _sample(self, reference: Reference, texts: Mapping[tuple[int, int], str]) -> dict[str, Any]:
        start, identifier, key, source, score = reference
        text = texts.get((start, identifier))
        shown = clean(text[:SHOWN_CHARACTERS]) if text is not None else "(the documents are gone: run the recipe again)"
        name = self.figures["sources"][source]["name"]
        return {"key": key, "source": name, "score": score, "text": shown, "characters": len(text or "")}


def table(figures: Mapping[str, Any], step: int) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Return what a threshold keeps as remarks, and as rows: source, documents, kept, share, tokens kept, remark."""
    found = figures_at(figures, step)
    rows = []
    for source in found["sources"]:
        share = source["kept_documents"] / max(source["documents"], 1)
        flag = "" if share >= FEW or not source["documents"] else "vanishes" if not share else "below a tenth"
        rows.append([
            source["name"], f"{source['documents']:,}", f"{source['kept_documents']:,}", f"{100 * share:.1f}%",
            about(source["kept_tokens"]), flag,
        ])  # fmt: skip
    share = found["kept_documents"] / max(found["documents"], 1)
    total = ["in all", f"{found['documents']:,}", f"{found['kept_documents']:,}", f"{100 * share:.1f}%",
             about(found["kept_tokens"]), ""]  # fmt: skip
    return list(_remarks(figures, found, step)), rows, [total]


def _remarks(figures: Mapping[str, Any], found: Mapping[str, Any], step: int) -> Iterator[str]:
    chosen = figures["chosen"]
    yield f"threshold {found['threshold']:.6g}" + (f"; the stage chose {chosen:.6g}" if chosen is not None else "")
    held_out = figures["held_out"]
    if held_out is None:
        yield "precision and recall: unknown, since no scorer with held-out grades made these scores"
    else:
        for name, beside in (("precision", f"{held_out['kept'][step]} held-out grades from the threshold on"),
                             ("recall", f"{held_out['good']} held-out grades that are good")):  # fmt: skip
            value = held_out[name][step]
            told = f"{100 * value[0]:.0f}% ({100 * value[1]:.0f} to {100 * value[2]:.0f}%)" if value else "unknown"
            yield f"{name} {told}, on {beside}"
    tokenizer = figures["tokenizer"]
    yield "tokens are estimates: bytes over bytes per token, " + (f"as {tokenizer} cuts a sample" if tokenizer else "4")


def _made_from(artifact: Artifact) -> dict[str, list[tuple[str, str]]]:
    """Return name and kind of the stages that an artifact was made from, by role, as far as they are still there."""
    inputs = artifact.manifest.inputs.items()
    found = {
        role: [(ref.stage, Artifact(artifact.store, ref.folder)) for ref in references] for role, references in inputs
    }
    return {
        role: [(stage, parent.manifest.kind) for stage, parent in parents]
        for role, parents in found.items()
        if all(parent.complete for _, parent in parents)
    }


def _input(artifact: Artifact, role: str) -> Artifact:
    references = artifact.manifest.inputs.get(role, [])
    if not references:
        raise DataError(
            f"{artifact.manifest.stage} ({artifact.manifest.kind}) was not made of {role}",
            "name the artifact of a `score` stage",
        )
    return Artifact(artifact.store, references[0].folder)
