"""What a text shares with the text that it was made from: copied runs, words drawn on, numbers and names that are new.

All of it is cheap and rough, and measures words, not meaning: enough to refuse a copy or an answer about something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from generators.inflections import inflections
from generators.sentences import sentences

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LIST_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s+", re.MULTILINE)
NAME = re.compile(r"(?<![^\s(\"'“‘])[A-Z][\w'’-]*[\w]")
TEXTS = {
    "text": "texts",
    "passage": "passages",
    "essay": "essays",
    "article": "articles",
    "paragraph": "paragraphs",
    "story": "stories",
    "excerpt": "excerpts",
    "document": "documents",
}
TEXT_SPOKEN_OF = re.compile(
    rf"\b(?:(?:this|that|the)\s+(?P<one>{'|'.join(TEXTS)})|these\s+(?P<many>{'|'.join(TEXTS.values())}))\b"
    r"(?!(?<=the story)\s+(?:of|about)\b)",
    re.IGNORECASE,
)
STEM_LETTERS = 5
"""Two words count as one when they begin with the same so many letters: float, floats, floating."""
CONTENT_LETTERS = 4
_COMMON = """
about above after again also although always among another around because been before being below between both called cannot
could does doing done down each either else enough even ever every example from give goes good have having here however into
itself just kind know less like made make makes many might more most much must need never next often once only other ours
over part people quite rather really same says several shall should simple simply since some something still such sure take
text than that their them then there therefore these they thing things this those though through thus time together under
until upon used user uses using very want wants well were what when where whether which while whom whose will with within
without would your yours yourself
"""
SAME_WORDS = 0.8
COMMON = frozenset(_COMMON.split())
"""Words that say nothing of what a text is about."""
SHORT_LETTERS = 3
_SHORT_COMMON = """
all and any are but can did far few for get got had has her him his how its let lot may not now off one our out own per put
say see she the too use via was way who why yes yet you
"""
SHORT_COMMON = frozenset(_SHORT_COMMON.split())


def words(text: str) -> list[str]:
    """Return the words of a text, case folded, in order."""
    return [found.casefold().replace("’", "'") for found in WORD.findall(text)]


def alike(text: str, other: str, share: float = SAME_WORDS) -> bool:
    """Tell whether two texts have over this share of their words in common (Jaccard index), in any order."""
    own, others = set(words(text)), set(words(other))
    return len(own & others) > share * len(own | others)


def repeated_sentence(text: str, earlier: str, least_words: int) -> str:
    """Return a sentence of a text, of so many words or more, that is alike to one of the earlier text; empty without one."""
    said = sentences(earlier)
    own = (sentence for sentence in sentences(text) if len(words(sentence)) >= least_words)
    return next((sentence for sentence in own if any(alike(sentence, other) for other in said)), "")


def ngrams(text: str, length: int) -> set[tuple[str, ...]]:
    """Return the runs of `length` words that occur in a text."""
    found = words(text)
    return {tuple(found[place : place + length]) for place in range(len(found) - length + 1)}


def copied_share(text: str, source: str, length: int) -> float:
    """Return which share of the text's runs of `length` words stands in the source too; 0 for a shorter text."""
    own = ngrams(text, length)
    return len(own & ngrams(source, length)) / len(own) if own else 0.0


def copies_run(text: str, source: str, length: int) -> str:
    """Return a run of `length` words that stands in both texts, or an empty text."""
    common = ngrams(text, length) & ngrams(source, length)
    return " ".join(min(common)) if common else ""


def copied_sentence(text: str, request: str, source: str, least_words: int) -> str:
    """Return a sentence of a request, of so many words or more, that a text holds verbatim and the source does not.

    Case and white space may differ. Empty without one.
    """
    said, known = _folded(text), _folded(source)
    asked = (_folded(sentence) for sentence in sentences(request))
    return next((one for one in asked if len(one.split()) >= least_words and one in said and one not in known), "")


def speaks_of_text(text: str, source: str) -> str:
    """Return the words with which a text speaks of another that its reader never sees; empty without any. English only.

    `the story of` and `the story about` may be any story; where the source itself has the noun, it may speak of one, too.
    """
    known = {word.removesuffix("'s") for word in words(source)}
    held = {form for noun_forms in TEXTS.items() if not known.isdisjoint(noun_forms) for form in noun_forms}
    found = TEXT_SPOKEN_OF.finditer(text)
    return next((one[0] for one in found if (one["one"] or one["many"]).casefold() not in held), "")


def content_words(text: str) -> list[str]:
    """Return the words that say what a text is about: longer ones that are not COMMON, cut to their first letters."""
    return [
        word[:STEM_LETTERS]
        for word in words(text)
        if len(word) >= CONTENT_LETTERS and word not in COMMON and not word.isdigit()
    ]


def drawn_share(text: str, source: str) -> float:
    """Return which share of a text's content words occurs in the source; 0 for a text without any."""
    own = content_words(text)
    known = set(content_words(source))
    return sum(word in known for word in own) / len(own) if own else 0.0


def new_numbers(text: str, source: str) -> list[str]:
    """Return the numbers of a text that the source does not hold; the marks of a numbered list are none."""
    known = set(_numbers(source))
    return [number for number in _numbers(LIST_MARK.sub("", text)) if number not in known]


def repeats_question(answer: str, question: str) -> bool:
    """Tell whether an answer begins with its question, or has no number and no content word that the question lacks."""
    if answer.casefold().startswith(question.rstrip("?").casefold()):
        return True
    short = {word for word in words(answer) if len(word) == SHORT_LETTERS} - SHORT_COMMON - set(words(question))
    new = set(content_words(answer)) - set(content_words(question))
    return not new and not short and not new_numbers(answer, question)


def new_names(text: str, source: str) -> list[str]:
    """Return capitalised words inside a text's sentences that the source does not hold in any case.

    The first word of a line, cell or sentence may be capitalised for its place alone, and what stands before a colon is a
    label: both are passed over, so a new name that stands only there is missed.
    """
    known = set(words(source)) | {word[:STEM_LETTERS] for word in words(source)}
    return [
        name
        for name in _inner_names(LIST_MARK.sub("", text))
        if (word := name.casefold().replace("’", "'").removesuffix("'s")) not in known
        and word[:STEM_LETTERS] not in known
        and word not in COMMON
        and len(word) > 2
    ]


def held_words(text: str, asked: Iterable[str]) -> list[str]:
    """Return those of the words asked for that a text holds, inflections of them included, in the order asked."""
    held = set(words(text))
    return [word for word in asked if not held.isdisjoint(inflections(word))]


def is_about(text: str, subject: str) -> bool:
    """Tell whether a text holds a word that begins as any content word of its subject does; True where that has none."""
    asked = {word[:CONTENT_LETTERS] for word in content_words(subject)}
    return not asked or not asked.isdisjoint(word[:CONTENT_LETTERS] for word in words(text))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _numbers(text: str) -> Iterator[str]:
    for number in NUMBER.findall(text):
        yield number.replace(",", "")


def _inner_names(text: str) -> Iterator[str]:
    for piece in re.split(r"[|\n]|[.!?:;]\s|[.!?]$", re.sub(r"^[^|:\n]{1,40}[:|]", "", text, flags=re.MULTILINE)):
        piece = piece.strip(" \t\"'“”‘’*_(#-")
        first = re.match(r"\S+", piece)
        yield from NAME.findall(piece, first.end() if first else 0)
