"""What an answer must pass before it becomes a document: checks of a text alone, cheap first, and the near-duplicate sieve.

`check_text` looks at one text: is it the model's refusal or its talk to the user, is something left to fill in, does it lack
what was asked for, does it go in circles, is it in another language? A sieve (`Sieve` in prompted.py) compares a text with the
accepted ones before it. A check that is in doubt lets the text pass: a corpus bears a few bad documents, but not a check that
takes away one kind of good ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import Field

from generators.chatter import find_answer_chatter, find_chatter, find_placeholder, find_self_talk, plain
from generators.inflections import inflections
from generators.sentences import SENTENCE_END
from hornbook.language import UNKNOWN, identify, language_code, same_or_near
from hornbook.near_duplicates import NearDuplicates
from hornbook.settings import Settings
from hornbook.shingles import words_of

OPENING_CHARACTERS = 300
MIN_WORDS = 4
GRAM_WORDS = 4
LOOP_REPEATS = 3
LONGEST_LOOP = 60
MIN_LANGUAGE_BYTES = 60
WRONG_LANGUAGE_PERCENT = 50
SURE_LANGUAGE_PERCENT = 80
SAME_SENTENCE_SHARE = 0.1
SIGNS = b"+-/=<>%^_"
FENCE = "```"


class Refused(Exception):
    """An answer that is not wanted: a short reason, counted in the manifest, and a detail for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = str(reason)
        self.detail = str(detail)


class CheckSettings(Settings):
    """Settings of the checks after generation; each can be switched off."""

    refusal: bool = Field(True, description="Refuse texts in which the model declines to answer (`As an AI ...`).")
    chatter: bool = Field(
        True,
        description="Refuse texts in which an assistant talks to its user (`Sure, here is ...`: `chatter`) or that speak of "
        "themselves and their task (`In this story, we have`: `about-itself`).",
    )
    unfinished: bool = Field(
        True,
        description="Refuse texts with a blank to fill in (`[Your Name]`: `placeholder`) or an `unclosed-block` of code.",
    )
    missing_words: bool = Field(True, description="Refuse texts without the words or the sentence that were asked for.")
    repetition: bool = Field(True, description="Refuse texts that go in circles, by the four limits below.")
    loop_words: int = Field(
        12, ge=3, description="Words of one thing said three times or oftener in a row, from which a text is a loop."
    )
    same_sentence: int = Field(
        4,
        ge=2,
        description="How often a sentence or line of four or more words may stand in a text that it is a tenth of.",
    )
    repeated_sentences: float = Field(
        0.3, gt=0, le=1, description="Largest share of a text's words in sentences or lines that occurred before."
    )
    repeated_grams: float = Field(
        0.3, gt=0, le=1, description="Largest share of a text's four-word sequences that occurred before."
    )
    language: bool = Field(
        True, description="Refuse texts in another language, where the kind says which it asked for."
    )
    near_duplicates: bool = Field(True, description="Refuse texts that are too similar to an earlier accepted one.")
    similarity: float = Field(
        0.8, gt=0, le=1, description="Jaccard index of three-word sequences from which two texts are near-duplicates."
    )
    remembered: int = Field(
        1_000_000, ge=1, description="Accepted texts that new ones are compared with; about 700 bytes of memory each."
    )


def check_text(text: str, settings: CheckSettings, required: Sequence[str] = (), language: str = "") -> None:
    """Pass a text, or raise Refused with the reason `refusal`, `chatter`, `about-itself`, `placeholder`, `unclosed-block`,
    `missing-words`, `repetition` or `wrong-language`.

    Args:
        text: the text of the answer.
        settings: which checks, with their limits.
        required: what the text must hold: single words, of which inflections count, or whole sentences, verbatim.
        language: ISO 639-1 code of the language asked for; empty leaves the language unchecked.
    """
    check_refusal(text, settings)
    if settings.chatter:
        check_chatter(text)
    if settings.unfinished:
        check_finished(text)
    words = _without_rules(text)
    if settings.missing_words and (missing := find_missing(text, words, required)):
        raise Refused("missing-words", missing)
    if settings.repetition and (repetition := find_repetition(text, words, settings)):
        raise Refused("repetition", repetition)
    check_language(text, settings, language)


def check_refusal(text: str, settings: CheckSettings) -> None:
    """Pass a text, or raise Refused with the reason `refusal`: the cheapest of the checks, for whole replies as for parts."""
    if settings.refusal and (refusal := find_refusal(text)):
        raise Refused("refusal", refusal)


def check_answer(answer: str, settings: CheckSettings) -> None:
    """Pass an answer of a chat, or raise Refused with the reason `refusal` or, of what it begins with, `chatter`."""
    check_refusal(answer, settings)
    if settings.chatter and (chatter := find_answer_chatter(plain(answer))):
        raise Refused("chatter", chatter)


def check_chatter(text: str) -> None:
    """Pass a text, or raise Refused with the reason `chatter` or `about-itself`."""
    narration = plain(text)
    if chatter := find_chatter(narration):
        raise Refused("chatter", chatter)
    if self_talk := find_self_talk(narration):
        raise Refused("about-itself", self_talk)


def check_finished(text: str) -> None:
    """Pass a text, or raise Refused with the reason `placeholder` or `unclosed-block`."""
    if placeholder := find_placeholder(text):
        raise Refused("placeholder", placeholder)
    check_blocks(text)


def check_blocks(text: str) -> None:
    """Pass a text, or raise Refused with the reason `unclosed-block`."""
    if text.count(FENCE) % 2:
        raise Refused("unclosed-block", text[text.rfind(FENCE) :][:200])


def check_language(text: str, settings: CheckSettings, language: str) -> None:
    """Pass a text, or raise Refused with the reason `wrong-language`; any text where `language` is empty."""
    if settings.language and language and (other := other_language(text, language)):
        raise Refused("wrong-language", f"{other}, not {language}")


def _without_rules(text: str) -> list[bytes]:
    """Return a text's words without the lines of tables and headings."""
    return [word for word in words_of(text) if word.strip(SIGNS)]


class NearDuplicateSieve:
    """Refuses texts whose three-word sequences are those of an earlier accepted text."""

    reason = "near-duplicate"

    def __init__(self, settings: CheckSettings) -> None:
        self.earlier = NearDuplicates(settings.similarity, settings.remembered)

    def refuses(self, text: str, meta: Mapping[str, Any]) -> str:
        """Return which accepted text, counted from 0, this one is similar to and how much, or an empty text."""
        found = self.earlier.similar(text)
        return "" if found is None else f"similarity {found[1]:.2f} to accepted text {found[0]}"

    def add(self, text: str, meta: Mapping[str, Any]) -> None:
        """Remember an accepted text."""
        self.earlier.add(text)


# Refusal: the words of an assistant about itself, at the very beginning and outside of quoted speech, so that a character
# who says "I'm sorry, but I can't" and a robot that is an AI may be told of.

_CANNOT = "i (?:cannot|am unable to|am not able to|will not|must decline to)"
_TASK = (
    r"(?:help|assist|fulfil+|comply|provide|write|generate|create|produce|continue|complete|answer|discuss|engage|support"
    r"|respond|offer|do (?:that|this)|tell you|share|give you)\b"
)
_OF_THE_CHAT = (  # what an assistant speaks of, and a character hardly ever
    r"[^.!?]{0,60}\b(?:requests?|you with|(?:for|with) (?:that|this|it)|stor(?:y|ies)|content|prompts?|instructions?|questions?|task)\b"
)
_MODEL = r"an? (?:ai|artificial intelligence|(?:ai |large )*language model|(?:ai |virtual )assistant)\b"
_REFUSALS_AT_START = re.compile(
    "|".join(
        (
            rf"(?:i am )?(?:\w+ )?sorry,? (?:but )?(?:as {_MODEL}|{_CANNOT} {_TASK})",
            rf"(?:unfortunately,? |i apologi[sz]e,? )?(?:but )?{_CANNOT} {_TASK}{_OF_THE_CHAT}",
            rf"(?:(?:i am )?sorry,? (?:but )?)?i am (?:just |only )?{_MODEL}",
            r"i do not have (?:the ability|personal (?:opinions|experiences|feelings)|access to)",
            r"es tut mir leid, (?:aber )?ich kann|je suis désolée?, (?:mais )?je ne peux|lo siento, (?:pero )?no puedo",
        )
    )
)
_REFUSALS_WITHIN = {  # by what a text must hold for the pattern to be worth looking for
    "as a": re.compile(rf"(?:^|[.!?,] +)as {_MODEL}[^.!?]{{0,40}}?\bi (?:do|cannot|can|am|have|will|must)\b"),
    "against my ": re.compile(r"\bagainst my (?:programming|guidelines|policies)"),
}


@lru_cache(maxsize=256)  # of a reply that is the document, it is asked twice
def find_refusal(text: str) -> str:
    """Return the words with which a model declines at the beginning of its answer, or an empty text."""
    opening = plain(text[:OPENING_CHARACTERS])
    found = _REFUSALS_AT_START.match(opening)
    for sign, pattern in _REFUSALS_WITHIN.items():
        found = found or (pattern.search(opening) if sign in opening else None)
    return found[0].strip() if found else ""


# Missing words.

_STRAIGHT = str.maketrans("“”„«»‘’‚", '"""""\'\'\'')


def find_missing(text: str, words: Sequence[bytes], required: Sequence[str]) -> str:
    """Return what of `required` a text lacks, or an empty text."""
    present: set[bytes] | None = None
    for wanted in required:
        forms = _forms(wanted)
        if not forms:
            if _plain(wanted) not in _plain(text):
                return f"the sentence {wanted!r}"
            continue
        if present is None:
            present = set(words)
            present.update(part for word in words if b"-" in word for part in word.split(b"-"))
        if present.isdisjoint(forms):
            return f"the word {wanted!r}"
    return ""


@lru_cache(maxsize=10_000)
def _forms(wanted: str) -> frozenset[bytes]:
    """Return what a single word and its inflections look like among `words_of` a text; nothing for a sentence."""
    if len(words_of(wanted)) != 1:
        return frozenset()
    return frozenset(words_of(form)[0] for form in inflections(wanted.strip()))


def _plain(text: str) -> str:
    """Make runs of white space and kinds of quotation marks one."""
    return " ".join(text.translate(_STRAIGHT).split())


# Repetition.


def find_repetition(text: str, words: Sequence[bytes], settings: CheckSettings) -> str:
    """Return what a text repeats, or an empty text: a loop at its end, sentences or lines, or sequences of words."""
    if loop := _loop_at_end(words, settings.loop_words):
        return f"ends in a loop: {_shown(loop)}"
    sentences = [tuple(found) for part in SENTENCE_END.split(text) if len(found := _without_rules(part)) >= MIN_WORDS]
    if len(set(sentences)) < len(sentences):
        counts = Counter(sentences)
        for sentence, times in counts.items():
            if times > settings.same_sentence and times * len(sentence) > SAME_SENTENCE_SHARE * len(words):
                return f"{times} times: {_shown(sentence)}"
        again = sum(len(sentence) * (times - 1) for sentence, times in counts.items())
        if again > settings.repeated_sentences * len(words):
            return f"{again} of {len(words)} words in repeated sentences"
    grams = len(words) - GRAM_WORDS + 1
    if grams > 0:
        again = grams - len(set(zip(*(words[offset:] for offset in range(GRAM_WORDS)), strict=False)))
        if again > settings.repeated_grams * grams:
            return f"{again} of {grams} sequences of {GRAM_WORDS} words occurred before"
    return ""


def _loop_at_end(words: Sequence[bytes], least: int) -> Sequence[bytes]:
    """Return the words that the end of a text repeats, three times or oftener and for at least `least` words in all."""
    for period in range(1, min(LONGEST_LOOP, len(words) // LOOP_REPEATS) + 1):
        if words[-1] != words[-1 - period]:
            continue
        length = max(LOOP_REPEATS * period, least)
        if length <= len(words) and words[-length:-period] == words[len(words) - length + period :]:
            return words[-period:]
    return ()


def _shown(words: Sequence[bytes]) -> str:
    return b" ".join(words).decode("utf-8", "replace")[:200]


# Language.


def other_language(text: str, language: str) -> str:
    """Return the code of the language that a text is in where that is surely not `language`, else an empty text.

    Too short texts, several languages without a clear majority and what the identifier does not know pass.
    """
    code = _language(text, WRONG_LANGUAGE_PERCENT)
    return "" if same_or_near(code, language_code(language)) else code


@lru_cache(maxsize=256)
def sure_language(text: str) -> str:
    """Return the code of the language that a text, next to all of it, is in; empty where that is not sure.

    Markup and code hide the words of a text: where the identifier read less than half of it, nothing is sure.
    """
    return _language(text, SURE_LANGUAGE_PERCENT, len(text) // 2)


def _language(text: str, percent: int, least_bytes: int = 0) -> str:
    """Return the code of a text's language where the identifier is sure of it, read so many bytes of words and gives it more
    than `percent` of them."""
    found = identify(text)
    sure = found.reliable and found.size >= max(MIN_LANGUAGE_BYTES, least_bytes) and found.percent > percent
    return found.code if sure and found.code != UNKNOWN else ""
