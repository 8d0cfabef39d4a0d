"""Rules for prose: Gopher's (Rae et al. 2021), C4's (Raffel et al. 2020) and FineWeb's (Penedo et al. 2024).

Gopher's stop words and C4's phrases are English: leave those rules out for other languages. C4 drops lines first and judges
what is left; so do its rules here, and its other line rules are given as shares of lines.
"""

from __future__ import annotations

import re

import numpy as np

from classifiers.text_view import Integers, TextView, duplicates, share, share_of

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_STOP_FORMS = {form: word for word in STOP_WORDS for form in (word, word.capitalize(), word.upper())}

# What a sentence may end with, in the scripts that have signs of their own for it. FineWeb's lines end with these.
SENTENCE_ENDS = frozenset(".!?。！？｡．؟۔।॥።፧։៖។៕၊။‼⁇⁈⁉‽")
# C4's lines may also end with a closing quotation mark.
_C4_ENDS = (".", "?", "!", '"', "'", "”", "’", "。", "？", "！")
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_LONG_WORD = 1000  # characters; C4 drops lines with longer words
_FEWEST_WORDS = 3  # in a line of C4
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
# A sentence ends within a line where a mark is followed by a space and no small letter (which follows "e.g."), or where no
# space is needed.
_INNER_END = re.compile(r"[.!?][\"'”’)\]]*+[ \t]++(?=[^a-z\s])|[。！？][”’」』）]*+(?=[^\s。！？])")
_SHORT_LINE = 30  # characters; FineWeb


# --- Gopher: quality -------------------------------------------------------------------------------------------------


def word_count(view: TextView) -> int:
    """Return the number of words with a letter or a digit; in scripts without spaces, of characters."""
    return int(view.occurrences[view.once(_with_letter_or_digit)].sum())


def mean_word_length(view: TextView) -> float | None:
    """Return the mean length of words with a letter or a digit; None in scripts without spaces, which have no lengths."""
    if view.unspaced:
        return None
    counted = view.once(_with_letter_or_digit)
    words = int(view.occurrences[counted].sum())
    return float((view.occurrences[counted] * view.word_lengths[counted]).sum()) / words if words else 0.0


def hash_ratio(view: TextView) -> float:
    """Return the number of "#" by that of words."""
    return view.text.count("#") / len(view.words) if view.words else 0.0


def ellipsis_ratio(view: TextView) -> float:
    """Return the number of ellipses ("..." or "…") by that of words."""
    return (view.text.count("...") + view.text.count("…")) / len(view.words) if view.words else 0.0


def bullet_lines(view: TextView) -> float:
    """Return the share of lines that begin with a bullet: •, - or *."""
    return share_of((line.lstrip().startswith(("•", "-", "*")) for line in view.lines), len(view.lines))


def ellipsis_lines(view: TextView) -> float:
    """Return the share of lines that end with an ellipsis."""
    return share_of((line.rstrip().endswith(("...", "…")) for line in view.lines), len(view.lines))


def alphabetic_words(view: TextView) -> float:
    """Return the share of words with a letter."""
    return share(int(view.occurrences[view.once(_with_letter)].sum()), len(view.words))


def stop_words(view: TextView) -> int:
    """Return how many of the eight English stop words occur."""
    return len({_STOP_FORMS[form] for form in _STOP_FORMS.keys() & view.vocabulary.keys()})


# --- C4 --------------------------------------------------------------------------------------------------------------


def c4_unpunctuated_lines(view: TextView) -> float:
    """Return the share of lines that do not end as a sentence does, or end with "..."."""
    return share_of((not _ends_sentence(line.strip()) for line in view.lines), len(view.lines))


def c4_short_lines(view: TextView) -> float:
    """Return the share of lines of fewer than three words."""
    return share_of((_short(line) for line in view.lines), len(view.lines))


def c4_script_lines(view: TextView) -> float:
    """Return the share of lines with the word "javascript", which are mostly warnings that it is off."""
    if "javascript" not in view.once(_lower):
        return 0.0
    return share_of(("javascript" in line.lower() for line in view.lines), len(view.lines))


def c4_policy_lines(view: TextView) -> float:
    """Return the share of lines that speak of terms of use, privacy or cookies."""
    if not _has_policy(view.once(_lower)):
        return 0.0
    return share_of((_has_policy(line.lower()) for line in view.lines), len(view.lines))


def c4_lorem_ipsum(view: TextView) -> bool:
    """Tell whether a line that C4 would keep has "lorem ipsum" in it."""
    return "lorem ipsum" in view.once(_lower) and any(
        "lorem ipsum" in line.lower() for line in view.once(_sentence_lines)
    )


def c4_curly_bracket(view: TextView) -> bool:
    """Tell whether a line that C4 would keep has a "{".

    The paper says any page with one; the program that made C4 looks only at lines that its other rules leave, and so do we.
    """
    if "{" not in view.text:
        return False
    return any("{" in line and "javascript" not in line.lower() for line in view.once(_sentence_lines))


def c4_sentences(view: TextView) -> int:
    """Return the number of sentences in the lines that C4 would keep."""
    lines = view.once(_sentence_lines)
    lower = view.once(_lower)
    if "javascript" in lower or _has_policy(lower):
        lines = [line for line in lines if "javascript" not in (low := line.lower()) and not _has_policy(low)]
    return len(lines) + len(_INNER_END.findall("\n".join(lines)))


# --- FineWeb ---------------------------------------------------------------------------------------------------------


def punctuated_lines(view: TextView) -> float:
    """Return the share of lines that end with the mark of a sentence's end."""
    return share_of((line[-1] in SENTENCE_ENDS for line in view.lines), len(view.lines))


def short_lines(view: TextView) -> float:
    """Return the share of lines of 30 characters or fewer."""
    return share_of((len(line) <= _SHORT_LINE for line in view.lines), len(view.lines))


def repeated_line_characters(view: TextView) -> float:
    """Return the share of characters, line ends apart, that are in lines that repeat an earlier line."""
    return share(duplicates(view.lines)[1], len(view.text) - view.text.count("\n"))


def line_ends_per_word(view: TextView) -> float:
    """Return the number of line ends by that of words."""
    return view.text.count("\n") / len(view.words) if view.words else 0.0


# --- what they share -------------------------------------------------------------------------------------------------


def _with_letter(view: TextView) -> Integers:
    """Return the numbers of the distinct words that have a letter."""
    flags = (word.isalpha() or any(map(str.isalpha, word)) for word in view.vocabulary)
    return np.flatnonzero(np.fromiter(flags, np.bool_, len(view.vocabulary)))


def _with_letter_or_digit(view: TextView) -> Integers:
    """Return the numbers of the distinct words that have a letter or a digit."""
    flags = np.zeros(len(view.vocabulary), np.bool_)
    flags[view.once(_with_letter)] = True
    words = list(view.vocabulary)
    for number in np.flatnonzero(~flags).tolist():
        flags[number] = any(map(str.isalnum, words[number]))
    return np.flatnonzero(flags)


def _lower(view: TextView) -> str:
    return view.text.lower()


def _has_policy(lower: str) -> bool:
    return any(phrase in lower for phrase in _POLICIES)


def _ends_sentence(line: str) -> bool:
    return line.endswith(_C4_ENDS) and not line.endswith("...")


def _short(line: str) -> bool:
    """Tell whether a line has fewer than three words; characters are words where there are no spaces."""
    words = line.split(None, _FEWEST_WORDS - 1)
    return len(words) < _FEWEST_WORDS and (line.isascii() or len(TextView(line).words) < _FEWEST_WORDS)


def _sentence_lines(view: TextView) -> list[str]:
    """Return the lines, citations removed, that end as a sentence does, have three words and none that is too long."""
    long_words = bool(len(view.word_lengths)) and int(view.word_lengths.max()) > _LONG_WORD
    kept = []
    for line in view.lines:
        line = line.strip()
        if long_words and max(map(len, line.split())) > _LONG_WORD:
            continue
        clean = _CITATION.sub("", line) if "[" in line else line
        if _ends_sentence(clean) and not _short(line):
            kept.append(clean)
    return kept
