"""A model that talks to its user instead of writing: about the task, about its own text, or with blanks left to fill in.

Patterns are English and narrow: found in what models wrote, and checked against texts that should pass. Quoted speech is left out,
so that a character may be happy to help.
"""

from __future__ import annotations

import re

OPENING = 300
ENDING = 250
"""Characters at either end of a text in which an assistant speaks to its user."""

_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|«[^»\n]*»|„[^“\n]*“")
_GLAD = r"i am (?:so |very |really |always )?(?:glad|happy|excited|thrilled|delighted|pleased|here)"
_VERSION = (
    r"(?:revised|rewritten|improved|updated|simplified|sample|possible) (?:version|paragraph|answer|text|story|section)"
)
_BEGINS = re.compile(
    "^(?:"
    + "|".join(
        (
            r"(?:sure|certainly|absolutely|of course)[!,.:]* (?:here|i would|i will|i can|i am|let us)\b",
            rf"{_GLAD} (?:to (?:help|assist|share|explain|explore|present|guide|provide|hear|be working)|you)\b",
            rf"here is (?:a|an|the|another|my|your) (?:short |simple |brief )?{_VERSION}\b",
            r"here is (?:a|an|another|your) (?:[\w-]+ ){0,3}(?:story|section|text|paragraph|explanation)\b[^.!?\n]{0,80}:",
            r"(?:this|that|what) (?:is |)a (?:very |really )?(?:good|great|excellent|interesting) (?:question|topic|prompt)[.!]",
            r"(?:a )?(?:very |really )?(?:good|great|excellent|interesting) (?:question|topic)[.!]",
            r"you are (?:absolutely )?right\b",
            r"your (?:code|essay|prompt|request|question|draft) (?:is|was|has)\b",
        )
    )
    + ")"
)
_ANSWER_BEGINS = re.compile(
    r"(?:you are (?:\w+ )?right\b(?!-)|that is an? (?:\w+ )?(?:great|good|excellent|interesting|wonderful) question\b"
    r"|(?:great|good|excellent) question[.!,]|i would be (?:\w+ )?happy to\b|i am designed to\b|your answer\b"
    r"|i am (?:\w+ )?happy to (?:help|assist|answer|explain|provide|share)\b)"
)
_ENDS = re.compile(
    r"\b(?:would you like me to \w+|let me know if|feel free to (?:ask|share|reach|let)|i hope (?:this|that|it) helps"
    r"|what would you like to (?:know|explore|learn|do) next|(?:is there )?anything else (?:i can|you would)"
    r"|i would love (?:it if you|you to) (?:continue|share)|thank you for (?:sharing|reading|your question))\b"
)
_TASK = re.compile(
    r"(?:^|[.!?:]\s+|\n\s*)(?:"
    r"(?:this|the) text (?:should|may|is (?:designed|written|meant|intended)|i (?:wrote|provided|am)|ends|concludes|above|below)\b"
    r"|(?:this|my) (?:answer|response) (?:is|was|will|meets|explains|covers)\b"
    r"|(?:this essay|this text) (?:will|introduces|explains|explores|describes|highlights|discusses)\b"
    r"|in (?:this essay|this article|this blog post|this response),? (?:we|i)\b"
    r"|in (?:my|your) (?:previous|last|next) (?:\w+ )?(?:post|message|response|explanation|prompt)\b"
    rf"|here is (?:a|an|the|my|another) (?:\w+ )?{_VERSION}\b"
    r"|i (?:chose|decided|tried) to use (?:a )?(?:simple|simpler|short|clear|plain)\b"
    r"|this week's prompt\b"
    r")"
)
_ABOUT_STORY = re.compile(
    r"\n\s*(?:in this (?:\w+ )?(?:story|tale|narrative)\b"
    r"|this (?:story|tale|ending) (?:is|ends|has|was)\b)"
)
_NAMES = r"(?:your|his|her|first|last|full|student|character)? ?name"
_PLACEHOLDER = re.compile(
    rf"(?<![`\w\])])\[(?:insert [^\]\n]*|{_NAMES}|topic|title|link|tweet|date|company)\](?![`(\[])", re.IGNORECASE
)
_CONTRACTIONS = (
    ("’", "'"),
    ("i'm ", "i am "),
    ("i'd ", "i would "),
    ("i'll ", "i will "),
    ("let's ", "let us "),
    ("here's ", "here is "),
    ("that's ", "that is "),
    ("you're ", "you are "),
    ("can't ", "cannot "),
    ("can not ", "cannot "),
    ("won't ", "will not "),
    ("don't ", "do not "),
)


def plain(text: str) -> str:
    """Return what patterns read: a text from its first word on, without quoted speech, in lower case, contractions written
    out."""
    text = _QUOTED.sub("", text).lower()
    for short, long in _CONTRACTIONS:
        text = text.replace(short, long)
    return text.lstrip("*_#>-. \n\t")


def find_chatter(plain_text: str) -> str:
    """Return the words with which an assistant talks to its user, at either end of a text, or an empty text."""
    match = _BEGINS.search(plain_text[:OPENING]) or _ENDS.search(plain_text[-ENDING:])
    return match[0].strip() if match else ""


def find_answer_chatter(plain_answer: str) -> str:
    """Return the words with which an answer of a chat praises or serves its asker before it answers, or an empty text.

    Much that is chatter in a text belongs in a chat: this looks for less than `find_chatter`, at the beginning only.
    """
    match = _ANSWER_BEGINS.match(plain_answer)
    return match[0] if match else ""


def find_self_talk(plain_text: str) -> str:
    """Return the words with which a text speaks of itself or of the task that it was written for, or an empty text."""
    match = _TASK.search(plain_text) or _ABOUT_STORY.search(plain_text)
    return match[0].strip(" \n.!?:") if match else ""


def find_placeholder(text: str) -> str:
    """Return a blank that someone else was to fill in ([insert name], [Your Name]), or an empty text."""
    match = _PLACEHOLDER.search(text) if "[" in text else None
    return match[0] if match else ""
