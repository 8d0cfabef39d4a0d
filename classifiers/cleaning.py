"""The rules that clean a text, each one small pure function, and the order in which they follow each other.

A rule applied to its own result changes nothing more, and none adds more than a stated number of characters. Characters
that only encode (controls, line breaks of other systems, wide and hard spaces) are repaired or replaced; words are not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from hornbook.settings import Settings

Rule = Callable[[str], str]
SIMILAR_TITLE = 0.9


class CleaningSettings(Settings):
    """Which rules clean a text, in the order in which they apply."""

    encoding: bool = Field(
        True, description="Repair text that was decoded with the wrong encoding (`cafÃ©`), with ftfy."
    )
    controls: bool = Field(
        True,
        description="Make line breaks of all systems one line feed; drop control characters (NUL and the like), byte-order "
        "marks, soft hyphens and code points that are no characters.",
    )
    unicode: Literal["NFC", "NFKC", "none"] = Field(
        "NFC",
        description="Normal form: NFC writes what looks alike alike; NFKC also replaces forms that only look different "
        "(`ﬁ`, `２`, `™`).",
    )
    boilerplate: Literal["html", "all", "none"] = Field(
        "html",
        description="Drop lines of nothing but a page's furniture (`Skip to content`, `Accept all cookies`) and marks of "
        "links to headings (`¶`): of what was HTML, of all documents, or of none.",
    )
    white_space: Literal["tidy", "collapse", "keep"] = Field(
        "tidy",
        description="tidy: spaces of all kinds become plain ones, none ends a line, at most two empty lines in a row; "
        "indentation stays. collapse: also one space for any run within a line, no indentation, one empty line at most.",
    )
    merge_title: bool = Field(
        False,
        description="Put the title that a document's metadata has before its text, unless the text begins with it or their "
        f"sets of characters are alike (Dice {SIMILAR_TITLE} or more).",
    )
    final_mark: bool = Field(False, description="End a text that ends without a final punctuation mark with one.")
    collapse_marks: bool = Field(
        False, description="Of punctuation marks in a row keep the last: `?!` becomes `!`, `...` becomes `.`."
    )


def clean(text: str, settings: CleaningSettings, from_html: bool = False, title: str = "") -> tuple[str, list[str]]:
    """Return a text after all rules that `settings` ask for, and the names of those that changed it, in order.

    Args:
        text: any text.
        settings: which rules.
        from_html: whether the text is what was extracted from HTML.
        title: the document's title, for `merge_title`; empty where it has none.
    """
    changed = []
    for name, rule in rules(settings, from_html, title):
        cleaned = rule(text)
        if cleaned != text:
            changed.append(name)
        text = cleaned
    return text, changed


def rules(settings: CleaningSettings, from_html: bool = False, title: str = "") -> Sequence[tuple[str, Rule]]:
    """Return the rules that `settings` ask for by the names of their settings, in the order in which they apply.

    The repair comes first, as it needs the control characters that wrong decoding made; the normal form after what drops
    characters, or a letter and its accent that came together would not be composed.
    """
    found: list[tuple[str, Rule]] = []
    if settings.encoding:
        found.append(("encoding", repair_encoding))
    if settings.controls:
        found.append(("controls", drop_controls))
    if settings.unicode != "none":
        found.append(("unicode", partial(unicodedata.normalize, settings.unicode)))
    if settings.boilerplate == "all" or (settings.boilerplate == "html" and from_html):
        found.append(("boilerplate", drop_boilerplate))
    if settings.white_space != "keep":
        found.append(("white_space", tidy_space if settings.white_space == "tidy" else collapse_space))
    if settings.merge_title and title:
        plain = CleaningSettings(encoding=settings.encoding, boilerplate="none", unicode=settings.unicode)
        found.append(("merge_title", partial(merge_title, " ".join(clean(title, plain)[0].split()))))
    if settings.final_mark:
        found.append(("final_mark", add_final_mark))
    if settings.collapse_marks:
        found.append(("collapse_marks", collapse_marks))
    return found


# --- encoding --------------------------------------------------------------------------------------------------------


def repair_encoding(text: str) -> str:
    """Undo decoding with the wrong encoding, line by line, where ftfy is sure of it: `cafÃ©` becomes `café`.

    Lines are repaired apart, since one page may join texts that were damaged in different ways, or not at all.
    """
    if text.isascii():
        return text
    import ftfy
    from ftfy.badness import is_bad

    def repaired(line: str) -> str:
        return line if line.isascii() or not is_bad(line) else ftfy.fix_encoding(line)

    return "\n".join(map(repaired, text.split("\n")))


_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_NO_CHARACTERS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)


def drop_controls(text: str) -> str:
    """Make every line break a line feed, then drop what is no character to read.

    Dropped: control characters but tab and line feed, byte-order marks, soft hyphens, marks of interlinear annotation, code
    points that Unicode says are no characters, and halves of surrogate pairs. Joiners and marks of direction stay: scripts
    need them.
    """
    return _NO_CHARACTERS.sub("", _LINE_BREAKS.sub("\n", text))


# --- boilerplate -----------------------------------------------------------------------------------------------------

# A line is furniture only if it is nothing else: what these words say within a sentence stays.
_FURNITURE = re.compile(
    "|".join(
        (
            r"(?:skip|jump) to (?:the )?(?:main )?(?:content|navigation|search)",
            r"(?:toggle|show|hide|open|close) (?:the )?(?:navigation|menu|sidebar|table of contents)(?: sidebar)?",
            r"(?:back|return|scroll) to (?:the )?top",
            r"(?:accept|reject|decline|allow|manage)(?: all)?(?: the)? cookies",
            r"(?:cookie|privacy) (?:settings|preferences|policy|notice|statement)",
            r"we use cookies\b.{0,200}",
            r"terms (?:of (?:use|service)|and conditions)",
            r"(?:all rights reserved|(?:copyright )?(?:©|\(c\)) ?(?:copyright )?\d{4}.{0,100})\.?",
            r"(?:log|sign) (?:in|out|up)(?: or (?:log|sign) (?:in|up))?",
            r"(?:share|follow us|like us|tweet)(?: this)?(?: (?:on|via) (?:facebook|twitter|x|linkedin|pinterest|reddit|e-?mail))?",
            r"subscribe(?: to our newsletter)?|leave a (?:comment|reply)",
            r"advertisements?|sponsored(?: content)?",
            r"(?:read|show|load|see|view) (?:more|less)(?: \.\.\.|…)?",
            r"(?:previous|next)(?: (?:page|topic|post|article|chapter|section))?",
            r"(?:edit|view|improve) this page(?: on github)?|(?:show|view) (?:page )?source|edit on github",
            r"print(?: this page)?|loading ?(?:\.\.\.|…)?",
            r"please enable (?:javascript|cookies)\b.{0,100}",
            r"(?:this (?:site|page) requires|you need(?: to enable)?) javascript\b.{0,100}",
        )
    ),
    re.IGNORECASE,
)
_LONGEST_FURNITURE = 240  # characters; longer lines are not looked at
_AROUND = " \t«»‹›<>|•·▲↑←→→-–—*#"
_LINK_MARKS = "¶§"


def drop_boilerplate(text: str) -> str:
    """Drop lines that are nothing but a page's furniture, and the marks of links to headings.

    Furniture: links for navigation, sharing, logging in, editing and printing the page, cookie banners, copyright lines,
    words in place of advertisements and of scripts; in English. A `¶` at the end of a line is such a mark, and a line of
    nothing but `¶` or `§`.
    """
    return "\n".join(line for line in map(_without_link_mark, text.split("\n")) if not _is_furniture(line))


def _without_link_mark(line: str) -> str:
    kept = line.rstrip(" \t¶")
    return kept if "¶" in line[len(kept) :] else line


def _is_furniture(line: str) -> bool:
    """Tell whether a line is furniture; an empty line is none."""
    if len(line) > _LONGEST_FURNITURE or not line:
        return False
    said = line.strip(_AROUND)
    return bool(_FURNITURE.fullmatch(said)) or not line.strip(_LINK_MARKS)


# --- white space -----------------------------------------------------------------------------------------------------

_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_EMPTY_LINES = re.compile(r"\n{4,}")


def tidy_space(text: str) -> str:
    """Make every kind of space a plain one; drop spaces at ends of lines, empty lines around the text, and those after two.

    Indentation, tabs and runs of spaces within a line stay: in code and tables they say something.
    """
    lines = [line.rstrip() for line in _SPACES.sub(" ", text).split("\n")]
    return _EMPTY_LINES.sub("\n\n\n", "\n".join(lines)).strip("\n")


def collapse_space(text: str) -> str:
    """Make every run of white space within a line one space; no line begins or ends with one; one empty line at most."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


# --- the rules of Phi2-mini-Chinese, as options ----------------------------------------------------------------------

_FINAL = ".!?…。！？｡؟۔।॥"
_PAUSES = ",;:、，；："
_CLOSING = "\"'”’»›)]}）】」』》*_"
_MARK_RUN = re.compile(rf"[{_FINAL}{_PAUSES}]+(?=[{_FINAL}{_PAUSES}])")
_FENCE = "```"


def merge_title(title: str, text: str) -> str:
    """Put a title in a line of its own before the text, unless the text begins with it or says no more than it.

    The two are alike from a Dice coefficient of their sets of characters of 0.9 on. Adds the title and one line feed.
    """
    if not title or text.startswith(title) or character_dice(title, text) >= SIMILAR_TITLE:
        return text
    return f"{title}\n{text}"


def character_dice(first: str, second: str) -> float:
    """Return 2 |A ∩ B| / (|A| + |B|) of the sets of characters of two texts (Dice 1945): 0 to 1; two empty texts are alike."""
    a, b = set(first), set(second)
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def add_final_mark(text: str) -> str:
    """End a text with a full stop, `。` after a Chinese or Japanese character, where it ends with no final mark.

    Quotation marks and brackets may follow the mark. Commas, colons and semicolons at the end give way to it; a text that
    ends with a fenced block of code, or has no word, stays. Adds one character at most.
    """
    ended = text.rstrip().rstrip(_PAUSES + " \t\n")
    said = ended.rstrip(_CLOSING + " ")
    if not said or ended.endswith(_FENCE):
        return text
    if said[-1] in _FINAL:
        return ended
    return ended + ("。" if _is_cjk(said[-1]) else ".")


def _is_cjk(character: str) -> bool:
    return "\u3040" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff" or character >= "\U00020000"


def collapse_marks(text: str) -> str:
    """Keep of punctuation marks that follow each other directly the last: `?!` becomes `!`, `...` and `,.` become `.`.

    Marks are those that end or divide sentences, in Latin, CJK, Arabic and Indic scripts; brackets and quotation marks are
    none. The rule knows no abbreviations: `e.g.,` becomes `e.g,`.
    """
    return _MARK_RUN.sub("", text)
