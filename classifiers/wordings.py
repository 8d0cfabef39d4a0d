"""What judges are asked of a document: the two wordings that ship for each way to answer, or templates of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hornbook.errors import RecipeError
from hornbook.judge import Rubric
from hornbook.stages import own_file

Answers = Literal["yes-no", "grades"]

YES_OR_NO: dict[str, Any] = {"choices": ("No", "Yes"), "scores": (0.0, 5.0)}
ROLES = ("system", "user", "assistant")
DOCUMENT = "(the document stands here)"


def load_wordings(answers: Answers, files: Sequence[str], folder: Path | None, where: str) -> tuple[Rubric, ...]:
    """Return the wordings in which documents are judged: those of `files`, or the two that ship.

    Args:
        answers: what the judge may say; a template of the user's own must ask for just that.
        files: Jinja templates; a line `--- role` starts a message, `{{ document }}` is the document.
        folder: the recipe's, where a file is looked for before the current folder.
        where: names the setting, for messages.

    Raises:
        RecipeError: a file cannot be read, is no template of messages, or never shows the document; or two are the same.
    """
    scale = YES_OR_NO if answers == "yes-no" else {}
    if not files:
        here, stem = Path(__file__).parent, f"wordings.{answers.replace('-', '_')}"
        shipped = {f"{answers}, wording {name}": here / f"{stem}_{name}.jinja" for name in ("a", "b")}
        return tuple(Rubric(name, path.read_text(encoding="utf-8"), **scale) for name, path in shipped.items())
    found = tuple(Rubric(file, _text(file, folder, where), **scale) for file in files)
    for rubric in found:
        _require_sound(rubric, where)
    if len({rubric.template for rubric in found}) < len(found):
        raise RecipeError(
            f"{where}: {' and '.join(files)} say the same: of course they would agree",
            "word the question in another way",
        )
    return found


def _text(file: str, folder: Path | None, where: str) -> str:
    path = own_file(file, folder) or Path(file).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"{where}: {file} cannot be read: {error.strerror or error}",
            "name a Jinja template by its path from the recipe's folder or the current one",
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{where}: {file} is not UTF-8: {error}", "save the template as UTF-8") from None


def _require_sound(rubric: Rubric, where: str) -> None:
    """Refuse a template that makes no chat in which the document occurs. Raises RecipeError."""
    from jinja2 import TemplateError

    cure = "a line `--- user` starts a message, `{{ document }}` stands for the document"
    try:
        messages = rubric.messages(DOCUMENT)
    except TemplateError as error:
        raise RecipeError(f"{where}: {rubric.name}: {error}", cure) from None
    roles = [message["role"] for message in messages]
    if not set(roles) <= set(ROLES) or not roles or roles[-1] != "user":
        raise RecipeError(
            f"{where}: {rubric.name}: the messages are of {', '.join(roles) or 'nobody'}",
            f"roles are {', '.join(ROLES)}, and the last message is the user's; {cure}",
        )
    if not any(DOCUMENT in message["content"] for message in messages):
        raise RecipeError(f"{where}: {rubric.name} never shows the document", cure)
