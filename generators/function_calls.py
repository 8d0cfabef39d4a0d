"""Function calls: a request to a phone and the calls that answer it, as chat records (DroidCall, arXiv 2412.00402; APIGen).

Three kinds of prompt, as DroidCall has them: `seed` shows examples of the tool, `self-instruct` shows requests accepted in the
wave before, `complex` asks for two or three calls that go together. The reply's shape is enforced by the engine, its calls
are checked against the catalogue, its values against the request, and its request against earlier ones.
"""

from __future__ import annotations

import importlib.resources
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from generators.call_plan import CallPlan, Combination, tool_combinations
from generators.call_schema import reply_schema
from generators.grounding import ungrounded
from generators.prompted import Messages, Parsed, Prompt, PromptedStage, PromptSettings, Refused, Sieve
from hornbook.chat import Message, chat_meta
from hornbook.errors import RecipeError
from hornbook.plan import derive_seed, row_random
from hornbook.rouge import SimilarTexts
from hornbook.settings import runtime
from hornbook.stages import own_file
from hornbook.tool_calls import FORMS, Form, canonical_calls, render_calls, tool_prompt, validate_calls
from hornbook.tools import Catalogue, Description, Tool, load_catalogue, type_name

LEARNED_EXAMPLES = 48
LONGEST_LEARNED = 400
"""Characters of an accepted request with its calls that may become an example."""
OPTIONAL_SHARE = 0.35
SEED_EXAMPLES = 2
PLACEHOLDER = re.compile(r"\{\{|\}\}|<[A-Za-z _]+>|\[[A-Za-z _]+\]")


class FunctionCallSettings(PromptSettings):
    """Settings of the kind `function-calls`; of a setting with several values each row has one, in balance."""

    catalogue: str = runtime(
        "",
        description="A catalogue of your own, a JSON file (see docs/generators/function_calls.md); empty takes ours. What it "
        "says is part of the artifact's fingerprint, its path is not.",
    )
    tools: tuple[str, ...] = Field((), description="Use these tools of the catalogue only; empty takes all.")
    forms: tuple[Form, ...] = Field(FORMS, min_length=1, description="Forms in which the calls are written.")
    descriptions: tuple[Description, ...] = Field(
        ("long", "short"), min_length=1, description="How the system message describes the tools."
    )
    listed_tools: int = Field(
        4, ge=1, le=64, description="Tools in the system message, others than the called ones too."
    )
    seed_rows: int | None = Field(
        None, ge=0, description="Rows at the beginning with seed prompts; default: the first wave's (`wave_rows`)."
    )
    complex_share: float = Field(0.4, ge=0, le=1, description="Share of the rows after them with several calls.")
    examples: int = Field(
        8, ge=0, le=LEARNED_EXAMPLES, description="Accepted requests that a self-instruct prompt shows."
    )
    grounded: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the words of each argument's value that the request must say (`ungrounded-argument`); 0 is no "
        "check.",
    )
    most_similar: float = Field(
        0.75, ge=0, le=1, description="Largest ROUGE-L F with an earlier request (`similar-request`); 1 is no check."
    )
    similar_window: int = Field(20_000, ge=1, description="Earlier requests that a new one is compared with.")


class FunctionCalls(PromptedStage):
    """Requests and the calls that answer them, as chats."""

    kind: ClassVar[str] = "function-calls"
    document_kind: ClassVar[str] = "chat"
    expected_tokens: ClassVar[int] = 60
    too_many_rows: ClassVar[str] = "ask for fewer rows or give a catalogue of more tools"
    cells: ClassVar[tuple[str, ...]] = ("style",)
    language: ClassVar[str] = "en"
    file_settings: ClassVar[tuple[str, ...]] = ("catalogue",)
    Settings = FunctionCallSettings
    settings: FunctionCallSettings

    @cached_property
    def catalogue(self) -> Catalogue:
        """The tools to choose from. Travels with the stage: a worker need not have the file."""
        named = self.settings.catalogue
        path = own_file(named, self.folder) if named else _data("tools.json")
        if path is None:
            raise RecipeError(
                f"stages.{self.name}.catalogue: there is no file {named}",
                "a path from the recipe's folder or the current one",
            )
        try:
            found = load_catalogue(path)
        except RecipeError as error:
            raise RecipeError(f"stages.{self.name}.catalogue: {error.message}", error.cure) from None
        self.refuse_unknown("tools", "tool", self.settings.tools, found.tools)
        wanted = self.settings.tools or tuple(found.tools)
        return Catalogue({name: tool for name, tool in found.tools.items() if name in wanted})

    @cached_property
    def several(self) -> list[tuple[Catalogue, dict[str, Any]]]:
        """Examples of several calls: our own, over our own catalogue, which a user's tools need not know."""
        ours = load_catalogue(_data("tools.json"))
        return [(ours, entry) for entry in json.loads(_data("examples.json").read_text(encoding="utf-8"))]

    @cached_property
    def situations(self) -> dict[str, list[str]]:
        """People, situations and styles: `function_calls.situations.txt`, a paragraph each."""
        paragraphs = _data("situations.txt").read_text(encoding="utf-8").strip().split("\n\n")[1:]
        return {lines[0].rstrip(":"): lines[1:] for lines in (paragraph.split("\n") for paragraph in paragraphs)}

    @cached_property
    def tool_combinations(self) -> list[Combination]:
        """What complex rows combine."""
        return tool_combinations(self.catalogue, derive_seed(self.seed, self.kind))

    @cached_property
    def combinations(self) -> CallPlan:
        """Which tool or combination, person, situation and style a row has; no two rows share all of them."""
        others = [len(choices) for choices in self.situations.values()]
        seed_rows = self.settings.wave_rows if self.settings.seed_rows is None else self.settings.seed_rows
        return CallPlan(
            [len(self.catalogue), *others],
            [len(self.tool_combinations), *others],
            self.settings.complex_share,
            seed_rows,
            derive_seed(self.seed, self.kind),
        )

    def extra_identity(self) -> dict[str, str]:
        """The catalogue's content, wherever it lies."""
        return {"catalogue": self.catalogue.digest}

    def check(self) -> None:
        """Refuse a wrong catalogue, and one of a single tool where tools are to be combined."""
        if len(self.catalogue) < 2 and self.settings.complex_share:
            raise RecipeError(
                f"stages.{self.name}.complex_share: a single tool cannot be combined",
                "set complex_share: 0, or add tools",
            )
        super().check()

    # --- what is asked --------------------------------------------------------------------------------------------------

    def prompt(self, row: int) -> Prompt:
        """Row `row` of the walk, with examples from the catalogue or, later, of the wave before."""
        several, chosen, *others = self.combinations[row]
        person, situation, style = (
            choices[index] for choices, index in zip(self.situations.values(), others, strict=True)
        )
        plan = self.tool_combinations[chosen] if several else Combination((list(self.catalogue.tools)[chosen],))
        dice = row_random(self.seed, self.kind, "prompt", row)
        arguments = self._arguments(plan, dice)
        learned = self._learned(plan, dice, row)
        mode = "complex" if several else "self-instruct" if learned else "seed"
        examples = learned or self._given(plan, dice)
        turns = [turn for known, entry in examples for turn in self._turns(known, entry, dice)]
        asked = self._ask(self.catalogue, plan, arguments, person, situation, style)
        seeds = {
            "mode": mode,
            "tools": list(plan.tools),
            "arguments": arguments,
            "links": [list(link) for link in plan.links],
            "person": person,
            "situation": situation,
            "style": style,
            "form": _balanced(self.settings.forms, row, self.seed, "forms"),
            "descriptions": _balanced(self.settings.descriptions, row, self.seed, "descriptions"),
            "listed": self._listed(plan.tools, dice),
        }
        return Prompt((*turns, *asked), seeds, schema=json.dumps(reply_schema(self.catalogue, plan, arguments)))

    def _arguments(self, plan: Combination, dice: random.Random) -> list[list[str]]:
        """Return the arguments that each call shall have: what it needs, what is a result, and some of the others."""
        linked = {(place, argument) for place, argument, _ in plan.links}
        return [
            [
                argument
                for argument in self.catalogue[name].arguments
                if argument in self.catalogue[name].required
                or (place, argument) in linked
                or dice.random() < OPTIONAL_SHARE
            ]
            for place, name in enumerate(plan.tools)
        ]

    def _learned(self, plan: Combination, dice: random.Random, row: int) -> list[tuple[Catalogue, Any]]:
        """Draw examples among the wave before's: with as many calls as these, the same tools' first. None in seed rows."""
        if row < self.combinations.seed_rows:
            return []
        several = len(plan.tools) > 1
        pool = [entry for entry in self.decisions.get("examples", []) if (len(entry["calls"]) > 1) == several]
        drawn = dice.sample(pool, len(pool))
        drawn.sort(key=lambda entry: all(call["name"] not in plan.tools for call in entry["calls"]))
        shown = drawn[: self.settings.examples]
        return [(self.catalogue, entry) for entry in reversed(shown)]  # the nearest ones last, next to the request

    def _given(self, plan: Combination, dice: random.Random) -> list[tuple[Catalogue, Any]]:
        """Draw examples that come with the catalogue or, of several calls, with this kind."""
        if len(plan.tools) > 1:
            return dice.sample(self.several, SEED_EXAMPLES)
        tool = self.catalogue[plan.tools[0]]
        examples = dice.sample(tool.examples, min(SEED_EXAMPLES, len(tool.examples)))
        return [(self.catalogue, _entry(tool, example)) for example in examples]

    def _turns(self, known: Catalogue, entry: Mapping[str, Any], dice: random.Random) -> Messages:
        """Return an example as it would have been asked and answered; who spoke is not known, so anybody may have."""
        links = [
            (place, argument, int(value[1:]))
            for place, call in enumerate(entry["calls"])
            for argument, value in call["arguments"].items()
            if isinstance(value, str) and value.startswith("#")
        ]
        plan = Combination(tuple(call["name"] for call in entry["calls"]), tuple(links))
        person, situation = (dice.choice(self.situations[name]) for name in ("people", "situations"))
        asked = self._ask(known, plan, [list(call["arguments"]) for call in entry["calls"]], person, situation)
        return (*asked, {"role": "assistant", "content": json.dumps(dict(entry), ensure_ascii=False)})

    def _ask(
        self,
        known: Catalogue,
        plan: Combination,
        arguments: Sequence[Sequence[str]],
        person: str,
        situation: str,
        style: str = "",
    ) -> Messages:
        results = {(place, argument): plan.tools[source] for place, argument, source in plan.links}
        tools = [
            {
                "name": name,
                "description": known[name].description,
                "arguments": [
                    {"name": argument, "about": _about(known[name], argument, results.get((place, argument), ""))}
                    for argument in arguments[place]
                ],
            }
            for place, name in enumerate(plan.tools)
        ]
        return self.ask(tools=tools, person=person, situation=situation, style=style)

    # --- what becomes of an answer --------------------------------------------------------------------------------------

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Check request and calls, and make the chat of them."""
        request, calls = _read(text)
        if PLACEHOLDER.search(request) or not any(character.isalpha() for character in request):
            raise Refused("no-request", f"a placeholder, or nothing said: {request[:200]}")
        if (style := prompt.seeds["style"]).count(" ") and style.casefold() in request.casefold():
            raise Refused("copies-prompt", f"says the manner asked for: {request[:200]}")
        problems = validate_calls(calls, self.catalogue)
        if problems:
            raise Refused(problems[0].reason, "; ".join(problem.detail for problem in problems)[:500])
        if any("_" in name and name in request for name in self.catalogue.tools):
            raise Refused("names-tool", f"a user does not know the tools' names: {request[:200]}")
        loose = ungrounded(request, calls, self.catalogue, self.settings.grounded)
        if loose:
            raise Refused("ungrounded-argument", f"{', '.join(loose)} not said in: {request[:200]}")
        answers = canonical_calls(calls, self.catalogue)
        form, described = prompt.seeds["form"], prompt.seeds["descriptions"]
        tools = [self.catalogue[name] for name in prompt.seeds["listed"]]
        written = render_calls(answers, form, self.catalogue)
        chat = [
            Message(role="system", content=tool_prompt(tools, form, described)),
            Message(role="user", content=request),
            Message(role="assistant", content=written),
        ]
        record = {"query": request, "tools": [tool.record() for tool in tools], "answers": answers}
        more = {"form": form, "descriptions": described, "mode": prompt.seeds["mode"]}
        return Parsed(f"{request}\n\n{written}", {**chat_meta(chat), **record, **more})

    def check_text(self, prompt: Prompt, text: str) -> None:
        """Check the request alone: calls repeat its words, as they must."""
        super().check_text(prompt, text.partition("\n\n")[0])

    def _listed(self, called: Sequence[str], dice: random.Random) -> list[str]:
        """Return the names of the called tools and of distractors, in any order."""
        names = list(dict.fromkeys(called))
        others = [name for name in self.catalogue.tools if name not in names]
        names += dice.sample(others, max(0, min(self.settings.listed_tools - len(names), len(others))))
        dice.shuffle(names)
        return names

    def sieves(self) -> list[Sieve]:
        """Requests too like an earlier one, or like an example of the prompts, before near-duplicates of any kind."""
        if self.settings.most_similar >= 1:
            return super().sieves()
        shown = [example["query"] for tool in self.catalogue for example in tool.examples]
        shown += [entry["query"] for _, entry in self.several]
        return [SimilarRequests(self.settings.most_similar, self.settings.similar_window, shown), *super().sieves()]

    def learn(self, accepted: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """Keep some requests of the wave as examples for the next, of as many tools as there are."""
        by_tools: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for document in accepted:
            meta = document["meta"]
            calls = [{"name": call["name"], "arguments": call["arguments"]} for call in meta["answers"]]
            entry = {"query": meta["query"], "calls": calls}
            kept = by_tools.setdefault(tuple(sorted({call["name"] for call in calls})), [])
            if len(kept) < SEED_EXAMPLES and len(json.dumps(entry)) <= LONGEST_LEARNED:
                kept.append(entry)
        rounds = [kept[turn] for turn in range(SEED_EXAMPLES) for kept in by_tools.values() if turn < len(kept)]
        single = [entry for entry in rounds if len(entry["calls"]) == 1]
        several = [entry for entry in rounds if len(entry["calls"]) > 1]
        room = LEARNED_EXAMPLES // 3
        return {"examples": single[: LEARNED_EXAMPLES - room] + several[:room]}


class SimilarRequests:
    """Refuses a document whose request is too like that of an earlier one, or like an example, by ROUGE-L's F.

    `hornbook.rouge` has the definition. Examples are remembered for ever, accepted requests within the window.
    """

    reason = "similar-request"

    def __init__(self, most: float, window: int, examples: Sequence[str]) -> None:
        self._examples = SimilarTexts(most, max(1, len(examples)))
        self._accepted = SimilarTexts(most, window)
        for example in examples:
            self._examples.add(example)

    def refuses(self, text: str, meta: Mapping[str, Any]) -> str:
        """Name the earlier request and the F."""
        for known in (self._examples, self._accepted):
            score, other = known.closest(meta["query"])
            if score:
                return f"ROUGE-L F {score:.2f} with: {other[:200]}"
        return ""

    def add(self, text: str, meta: Mapping[str, Any]) -> None:
        """Remember an accepted request."""
        self._accepted.add(meta["query"])


def _read(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Return request and calls of a reply; the calls' ids are their places. Raises Refused."""
    try:
        reply = json.loads(text)
        request = " ".join(reply["query"].split())
        request.encode()
        calls = [
            {"id": place, "name": call["name"], "arguments": call["arguments"]}
            for place, call in enumerate(reply["calls"])
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused("unparsable", f"{type(error).__name__}: {error}") from None
    if not request:
        raise Refused("unparsable", "an empty request")
    return request, calls


def _about(tool: Tool, argument: str, source: str) -> str:
    """Return what a prompt says of an argument: what it is, or whose result."""
    if source:
        return f"what {source} returns"
    schema = tool.arguments[argument]
    return f"{schema.get('description', '').rstrip('.')} ({type_name(schema)})".strip()


def _entry(tool: Tool, example: Mapping[str, Any]) -> dict[str, Any]:
    return {"query": example["query"], "calls": [{"name": tool.name, "arguments": dict(example["arguments"])}]}


def _balanced(choices: Sequence[Any], row: int, seed: int, name: str) -> Any:
    """Return a row's choice: in each block of as many rows as there are choices every one comes once, shuffled."""
    block, place = divmod(row, len(choices))
    return row_random(seed, name, block).sample(choices, len(choices))[place]


def _data(name: str) -> Path:
    return Path(str(importlib.resources.files("generators"))) / f"function_calls.{name}"
