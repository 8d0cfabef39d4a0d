"""Programming exercises: a function's name gives docstring, solution and asserts, which are run (phi-1's CodeExercises).

As in phi-1 (arXiv 2306.11644) diversity comes from the functions' names: a grammar of verbs, objects and qualifiers in
`exercises.names.txt`, grouped by what the function takes, gives 120,367 of them. An exercise is accepted if its own asserts
pass in the sandbox and would fail for a function that does nothing.
"""

from __future__ import annotations

import ast
import importlib.resources
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from generators.checks import check_text
from generators.prompted import Messages, Parsed, Prompt, PromptedStage, PromptSettings, Refused, Sieve
from generators.python_code import SyntaxSieve, answered_code, cut_out
from hornbook.errors import SandboxError
from hornbook.plan import Combinations, derive_seed
from hornbook.sandbox import SandboxLimits, require_sandbox
from hornbook.syntax import NotPython, parse_python, without_docstring
from hornbook.trial import Trial, try_function

Difficulty = Literal["easy", "medium", "hard"]
Stub = Literal["none", "constants", "argument"]

DIFFICULTIES = {
    "easy": "Make it easy: a few lines without special cases.",
    "medium": "Make it of medium difficulty: with one special case, such as an empty input.",
    "hard": "Make it hard: several steps or several special cases.",
}
ASSERTS_ASKED = "three"
MAX_CONSTANTS = 8
_KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


class Family(NamedTuple):
    """Verbs and qualifiers that fit each other and the objects of one type."""

    takes: str
    objects: tuple[str, ...]
    concepts: tuple[str, ...]
    verbs: tuple[str, ...]
    qualifiers: tuple[str, ...]


class Example(NamedTuple):
    """A worked exercise that is shown before the request."""

    takes: str
    concept: str
    difficulty: str
    code: str


class ExerciseSettings(PromptSettings):
    """Settings of the kind `exercises`."""

    takes: tuple[str, ...] = Field(
        (), description="Only functions that take these (`a string`, `two lists`); empty takes all 14 types."
    )
    difficulties: tuple[Difficulty, ...] = Field(
        ("easy", "medium", "hard"), min_length=1, description="How hard; each row has one, in balance."
    )
    examples: int = Field(
        2,
        ge=0,
        le=4,
        description="Worked exercises shown as chat turns before the request; the last one takes what the function takes.",
    )
    min_asserts: int = Field(2, ge=1, description="Different asserts that an exercise has at least.")
    stubs: tuple[Stub, ...] = Field(
        ("none", "constants", "argument"),
        description="Functions that the asserts must tell from the solution: one that returns None, one of the expected "
        "values, or its first argument.",
    )
    include_asserts: bool = Field(False, description="Put the asserts behind the solution; `meta` has them anyway.")
    ast_similarity: float = Field(
        0.9, gt=0, le=1, description="Jaccard index of five-node sequences from which two syntax trees are duplicates."
    )
    ast_constants: bool = Field(True, description="Whether programs that differ in constants differ.")
    remembered: int = Field(
        1_000_000, ge=1, description="Accepted programs that new ones are compared with; about 700 bytes each."
    )
    limits: SandboxLimits = Field(
        SandboxLimits(seconds=20, cpu_seconds=3, memory_mib=256, processes=4, scratch_mib=4),
        description="What the code may use.",
    )


class Exercises(PromptedStage):
    """Exercises in Python that were run, one a planned row."""

    kind: ClassVar[str] = "exercises"
    document_kind: ClassVar[str] = "code"
    language: ClassVar[str] = "en"
    expected_tokens: ClassVar[int] = 180
    too_many_rows: ClassVar[str] = "ask for fewer rows or add types (takes) or difficulties"
    cells: ClassVar[tuple[str, ...]] = ("takes", "difficulty")
    slow_parse: ClassVar[bool] = True
    Settings = ExerciseSettings
    settings: ExerciseSettings

    @cached_property
    def grammar(self) -> list[Family]:
        """All families of `exercises.names.txt`: each of the same size, so that a walk through all is balanced."""
        text = importlib.resources.files("generators").joinpath("exercises.names.txt").read_text(encoding="utf-8")
        families = []
        for group in text.split("\n## ")[1:]:
            takes, objects, concepts, *lines = group.strip().splitlines()
            for line in lines:
                verbs, _, qualifiers = line.partition(": ")
                families.append(
                    Family(
                        takes,
                        tuple(objects.removeprefix("objects: ").split()),
                        tuple(concepts.removeprefix("concepts: ").split(", ")),
                        tuple(verbs.split()),
                        tuple(qualifiers.split()),
                    )
                )
        return families

    @cached_property
    def families(self) -> list[Family]:
        """The families of the types asked for."""
        wanted = self.settings.takes
        return [family for family in self.grammar if not wanted or family.takes in wanted]

    @cached_property
    def examples(self) -> list[Example]:
        """The worked exercises of `exercises.examples.txt`."""
        text = importlib.resources.files("generators").joinpath("exercises.examples.txt").read_text(encoding="utf-8")
        found = []
        for part in text.split("\n## ")[1:]:
            head, _, code = part.partition("\n")
            takes, concept, difficulty = head.split(" | ")
            found.append(Example(takes, concept, difficulty, code.strip()))
        return found

    def check(self) -> None:
        """Refuse types that the grammar does not have."""
        self.refuse_unknown("takes", "type", self.settings.takes, (family.takes for family in self.grammar))
        super().check()

    def ready(self) -> None:
        """Refuse to begin where the code that the model writes cannot be run."""
        require_code_runs(self.name, self.kind)

    @cached_property
    def combinations(self) -> Combinations:
        """Which family, verb, object, qualifier, concept and difficulty a row has; names repeat only after all of them."""
        first = self.families[0]
        axes = (self.families, first.verbs, first.objects, first.qualifiers, first.concepts, self.settings.difficulties)
        return Combinations([len(choices) for choices in axes], derive_seed(self.seed, self.kind))

    def prompt(self, row: int) -> Prompt:
        """Row `row` of the balanced walk through all combinations of seeds."""
        chosen, verb, thing, qualifier, concept, difficulty = self.combinations[row]
        family = self.families[chosen]
        seeds = {
            "name": f"{family.verbs[verb]}_{family.objects[thing]}_{family.qualifiers[qualifier]}",
            "takes": family.takes,
            "concept": family.concepts[concept],
            "difficulty": self.settings.difficulties[difficulty],
        }
        shown = [
            turn
            for example in self._shown(family.takes)
            for turn in (
                *self._request(function_name(example.code), example.takes, example.concept, example.difficulty),
                {"role": "assistant", "content": f"```python\n{example.code}\n```"},
            )
        ]
        return Prompt((*shown, *self._request(**seeds)), seeds)

    def _shown(self, takes: str) -> list[Example]:
        """Return the worked exercises for a type: the same ones for all, then the type's own."""
        number = self.settings.examples
        own = [example for example in self.examples if example.takes == takes]
        others = [example for example in self.examples if example.takes != takes]
        return [*others[: max(0, number - len(own))], *own][:number]

    def _request(self, name: str, takes: str, concept: str, difficulty: str) -> Messages:
        return self.ask(name=name, takes=takes, concept=concept, rule=DIFFICULTIES[difficulty], asserts=ASSERTS_ASKED)

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Take the answer's function and asserts apart, run them, and refuse what does not hold or tests nothing.

        Raises:
            Refused: with one of the reasons that docs/generators/exercises.md lists.
            SandboxError: code cannot be run here.
        """
        name = str(prompt.seeds["name"])
        source = answered_code(text)
        if not source:
            raise Refused("no-code", text[:200])
        try:
            tree = parse_python(source)
        except NotPython as error:
            raise Refused("syntax-error", str(error)) from None
        function = find_function(tree, name)
        asserts = find_asserts(tree, source, name, self.settings.min_asserts)
        dropped = [node for node in tree.body if not isinstance(node, _KEPT) or _calls_at_top(node, name)]
        program = cut_out(source, dropped)
        shown = "\n\n" + "\n".join(asserts) + "\n" if self.settings.include_asserts else ""
        exercise = (program + shown).strip()
        self.check_text(prompt, exercise)  # before anything runs
        check_text(ast.get_docstring(function) or "", self.settings.checks, language=self.language_of(prompt))
        trial = try_function(program, name, asserts, self._stubs(tree, name), self.settings.limits)
        judge(trial, asserts)
        meta = {
            **{seed: prompt.seeds[seed] for seed in ("name", "takes", "concept", "difficulty")},
            "signature": signature(function),
            "asserts": asserts,
        }
        return Parsed(exercise, meta)

    def _stubs(self, tree: ast.Module, name: str) -> list[str]:
        chosen = self.settings.stubs
        expected = expected_values(tree, name) if "constants" in chosen else []
        return [*(["None"] if "none" in chosen else []), *expected, *(["its first argument"] * ("argument" in chosen))]

    def check_text(self, prompt: Prompt, text: str) -> None:
        """As for all kinds, but code may repeat itself, and what language it is in is asked of its docstring alone."""
        not_of_code = {"repetition": False, "chatter": False, "unfinished": False}
        check_text(text, self.settings.checks.model_copy(update=not_of_code), prompt.required)

    def sieves(self) -> list[Sieve]:
        """Refuse programs whose syntax tree an earlier one has, besides what all kinds refuse."""
        settings = self.settings
        return [*super().sieves(), SyntaxSieve(settings.ast_similarity, settings.ast_constants, settings.remembered)]


def require_code_runs(stage: str, kind: str) -> None:
    """Make sure that this machine can run what a model writes. Raises SandboxError that names the stage and the cure."""
    try:
        require_sandbox()
    except SandboxError as error:
        raise SandboxError(f"stages.{stage}: {kind} runs what the model writes: {error.message}", error.cure) from None


def function_name(code: str) -> str:
    """Return the name of the first function that a worked example defines."""
    return next(node.name for node in parse_python(code).body if isinstance(node, ast.FunctionDef))


def find_function(tree: ast.Module, name: str) -> ast.FunctionDef:
    """Return the function asked for. Raises Refused where it is not there, says nothing of itself or does nothing."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        raise Refused("wrong-name" if functions else "no-function", ", ".join(functions)[:200])
    function = functions[name]
    if not ast.get_docstring(function):
        raise Refused("no-docstring")
    arguments = function.args
    if not (arguments.posonlyargs or arguments.args or arguments.vararg or arguments.kwonlyargs):
        raise Refused("no-parameters")
    if all(map(_does_nothing, without_docstring(function.body))):
        raise Refused("empty-solution")
    return function


def _does_nothing(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Return(value=value):
            return value is None or (isinstance(value, ast.Constant) and value.value is None)
        case ast.Raise(exc=ast.Name(id="NotImplementedError") | ast.Call(func=ast.Name(id="NotImplementedError"))):
            return True
    return False


def find_asserts(tree: ast.Module, source: str, name: str, least: int) -> list[str]:
    """Return the asserts behind the functions. Raises Refused for none, for one that tests nothing, and for too few."""
    nodes = [node for node in tree.body if isinstance(node, ast.Assert)]
    if not nodes:
        raise Refused("no-asserts")
    for node in nodes:
        if not _tests(node.test, name):
            raise Refused("idle-assert", ast.unparse(node)[:200])
    found = {ast.dump(node): ast.get_source_segment(source, node) or ast.unparse(node) for node in nodes}
    if len(found) < least:
        raise Refused("few-asserts", f"{len(found)} different ones, {least} wanted")
    return list(found.values())


def _tests(test: ast.expr, name: str) -> bool:
    """Tell whether an assert's test depends on what the function returns."""
    if isinstance(test, ast.Compare) and all(ast.dump(test.left) == ast.dump(other) for other in test.comparators):
        return False
    return _calls(test, name)


def _calls(tree: ast.AST, name: str) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for node in ast.walk(tree)
    )


def _calls_at_top(node: ast.stmt, name: str) -> bool:
    """Tell whether a statement outside of definitions calls the function: a demonstration, not part of the solution."""
    return isinstance(node, ast.Assign | ast.AnnAssign) and _calls(node, name)


def expected_values(tree: ast.Module, name: str) -> list[str]:
    """Return the literals that asserts expect of the function, as Python: what a stub could return to please them."""
    found: dict[str, None] = {}
    for node in tree.body:
        match node:
            case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq() | ast.Is()], comparators=[right])):
                for value, call in ((right, left), (left, right)):
                    if _calls(call, name) and not any(isinstance(part, ast.Name) for part in ast.walk(value)):
                        found[ast.unparse(value)] = None
            case ast.Assert(test=ast.UnaryOp(op=ast.Not())):
                found["False"] = None
            case ast.Assert():
                found["True"] = None
    return list(found)[:MAX_CONSTANTS]


def signature(function: ast.FunctionDef) -> str:
    """Return the head of a function, as one line."""
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"def {function.name}({ast.unparse(function.args)}){returns}:"


STOPPED = {"timeout": "timeout", "output": "output-flood", "killed": "killed", "exited": "exits"}


def judge(trial: Trial, asserts: Sequence[str]) -> None:
    """Pass a trial that went well, or raise Refused with the reason; the detail is the traceback's last line."""
    if trial.stopped:
        raise Refused(STOPPED[trial.stopped], _place(trial, asserts))
    if trial.error.startswith("AssertionError") and trial.done:
        raise Refused("asserts-fail", f"{trial.error}: {_place(trial, asserts)}")
    if trial.error:
        raise Refused(reason_of(trial.error), f"{trial.error} {_place(trial, asserts)}".strip())
    if trial.stub:
        raise Refused("vacuous-asserts", f"a function that returns {trial.stub} passes them all")


def reason_of(error: str) -> str:
    """Return the reason for a traceback's last line: what cannot be compiled, what is not installed, what raises."""
    if error.startswith(("SyntaxError", "IndentationError")):
        return "syntax-error"
    return "not-standard-library" if error.startswith("ModuleNotFoundError") else "raises"


def _place(trial: Trial, asserts: Sequence[str]) -> str:
    return asserts[trial.done - 1][:200] if 0 < trial.done <= len(asserts) else ""
