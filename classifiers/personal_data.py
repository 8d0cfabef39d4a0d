"""Finds personal data and secrets in a text: keys and tokens, e-mail and IP addresses, card and phone numbers.

Few false alarms come before finding all: a number is a phone number only in a form that little else has, an IP address only
where no version number is likely, a card number only with its check digit. Not found are names, postal addresses, and
passwords that are words.

Every pattern takes time in proportion to the text, whatever the text: repetitions are possessive or of bounded length, and
what may begin anywhere begins only where a run of its characters does.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

Type = Literal["key", "email", "ip", "card", "phone"]
TYPES: tuple[Type, ...] = ("key", "email", "ip", "card", "phone")
"""In the order in which they are looked for: what one takes, the next does not see."""

_PASSES = 5  # a replacement may uncover something beside it; a second pass nearly always finds nothing
_CONTEXT = 24  # characters before a number that are looked at for a word that tells what it is


def replaced(text: str, types: Iterable[str] = TYPES, reserved: bool = False) -> tuple[str, dict[str, int]]:
    """Return a text with placeholders, and how much of each type was found in it (no entry for none).

    Args:
        text: any text.
        types: of TYPES, what to look for.
        reserved: whether to take addresses that belong to nobody: loopback, private and documentation IP addresses, and
            e-mail addresses of example.com and the like.
    """
    wanted = [kind for kind in TYPES if kind in set(types)]
    counts: Counter[str] = Counter()
    for _ in range(_PASSES):
        before = counts.total()
        for kind in wanted:
            text = _FINDERS[kind](text, reserved, counts)
        if counts.total() == before:
            break
    return text, dict(sorted(counts.items()))


def _substituted(
    pattern: re.Pattern[str], text: str, kind: str, counts: Counter[str], accept: Callable[[re.Match[str]], bool]
) -> str:
    """Replace the accepted matches of a pattern: of its group `value`, where it has one."""
    group = "value" if "value" in pattern.groupindex else 0

    def replacement(match: re.Match[str]) -> str:
        if not accept(match):
            return match[0]
        counts[kind] += 1
        start, stop = match.span(group)
        return f"{match[0][: start - match.start()]}<{kind.upper()}>{match[0][stop - match.start() :]}"

    return pattern.sub(replacement, text)


def _before(match: re.Match[str]) -> str:
    """Return the few characters before a match, small letters."""
    return match.string[max(0, match.start() - _CONTEXT) : match.start()].lower()


# --- keys and tokens -------------------------------------------------------------------------------------------------

_KEY_BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?P<body>(?:[^-]|-(?!----))*+)-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:[\s\\rn]*+[A-Za-z0-9+/=]{32,}+)++)"  # its end is missing
)
_KEY_BODY = re.compile(r"[A-Za-z0-9+/=]{32}")
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?:AKIA|ASIA|AGPA|AIDA|AROA|ANPA|ABIA|ACCA)[A-Z0-9]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,255}+|github_pat_[A-Za-z0-9_]{22,255}+"
    r"|glpat-[A-Za-z0-9_-]{20,64}+"  # GitLab
    r"|xox[abeoprs]-(?=[A-Za-z-]*\d)[A-Za-z0-9-]{10,255}+|xapp-\d-[A-Za-z0-9-]{20,255}+"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|[rs]k_live_[A-Za-z0-9]{16,255}+"  # Stripe
    r"|hf_[A-Za-z0-9]{34}"  # Hugging Face
    r"|sk-(?:proj-|ant-[a-z0-9]{1,8}-)?[A-Za-z0-9_-]{40,255}+"  # OpenAI, Anthropic
    r"|eyJ[A-Za-z0-9_-]{10,}+\.eyJ[A-Za-z0-9_-]{10,}+\.[A-Za-z0-9_-]{10,}+"  # JSON web token
    r")(?![A-Za-z0-9_-])"
)
_ASSIGNMENT = re.compile(
    r"(?<!public)(?<!public[_-])(?<!publickey)(?:key|secret|token|passwo?r?d|pwd|auth|credential)[\w-]{0,20}+[\"']?\]?[ \t]{0,4}+"
    r"(?:=>|:=|[:=])[ \t]{0,4}+(?:[bru]{1,2}(?=[\"']))?(?P<quote>[\"']?)(?P<value>[A-Za-z0-9+/_.~=-]{16,255}+)(?P=quote)"
    r"(?![\w(\[<])",
    re.IGNORECASE,
)

_SYLLABLES = re.compile(r"[a-z]{5}")


def _keys(text: str, reserved: bool, counts: Counter[str]) -> str:
    if "PRIVATE KEY" in text:
        text = _substituted(_KEY_BLOCK, text, "key", counts, _is_block)
    text = _substituted(_TOKEN, text, "key", counts, lambda match: len(set(match[0])) > 8)
    return _substituted(_ASSIGNMENT, text, "key", counts, _is_secret)


def _is_block(match: re.Match[str]) -> bool:
    """Tell a block with a key from a program's two strings that a block begins and ends with."""
    return match["body"] is None or _KEY_BODY.search(match["body"]) is not None


def _is_secret(match: re.Match[str]) -> bool:
    """Tell a secret from a program's names, which stand without quotes and have syllables in them."""
    value = match["value"]
    return looks_random(value) and (bool(match["quote"]) or not _SYLLABLES.search(value))


def looks_random(value: str) -> bool:
    """Tell whether a string looks drawn at random: letters and digits that change about often, and hardly repeat.

    Names change between small letters, capitals and digits seldom: `client_secret_name_2` once in 17 letters and digits.
    """
    signs = [sign for sign in value if sign.isalnum()]
    classes = [2 if sign.isdigit() else int(sign.isupper()) for sign in signs]
    if len(signs) < 16 or classes.count(2) < 2 or classes.count(2) == len(classes):
        return False
    changes = sum(one != other for one, other in itertools.pairwise(classes))
    return changes >= 0.25 * len(signs) and entropy(value) >= 3


def entropy(value: str) -> float:
    """Return the Shannon entropy of a string's characters, bits per character."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())


# --- e-mail addresses ------------------------------------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9_%+-][A-Za-z0-9_.%+-]{0,63}+(?<!\.)@"
    r"(?P<domain>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24})(?![\w@-])"
)
_FILE_ENDINGS = frozenset(
    {"png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "json", "py", "html", "xml", "md"}
)
_NOBODYS = frozenset({"example", "invalid", "test", "localhost", "local"})  # RFC 2606, RFC 6761


def _emails(text: str, reserved: bool, counts: Counter[str]) -> str:
    if "@" not in text:
        return text
    return _substituted(_EMAIL, text, "email", counts, lambda match: _is_email(match, reserved))


def _is_email(match: re.Match[str], reserved: bool) -> bool:
    """Tell an address from a file's name (`logo@2x.png`), a repository's (`git@github.com:`) and nobody's."""
    labels = match["domain"].lower().split(".")
    if labels[-1] in _FILE_ENDINGS or (
        match[0].startswith("git@") and match.string[match.end() : match.end() + 1] in (":", "/")
    ):
        return False
    nobodys = labels[-1] in _NOBODYS or (
        len(labels) > 1 and labels[-2] == "example" and labels[-1] in ("com", "net", "org")
    )
    return reserved or not nobodys


# --- IP addresses ----------------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w|/\d{1,3}(?!\d))")  # networks (/24) are nobody
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4})?(?::[0-9A-Fa-f]{0,4}){2,7}+(?![\w:]|/\d{1,3}(?!\d))")
_VERSION_BEFORE = re.compile(
    r"(?:version|release|section|oid|objectidentifier|revision|\bver\.?|\brev\.?|\bv)[\s\"':=(\[-]*\Z|[=~!<>]=\s*\Z"
)
_ADDRESS_BEFORE = re.compile(
    r"(?<!<)\b(?:ip|ips|ipv4|host|addr|address|server|dns|nameserver|gateway|ping|ssh)\b|://|@"
)
_SMALL = 50  # four numbers up to this are rather a version, unless a word before them says address
_DOCUMENTATION_V6 = ipaddress.ip_network("2001:db8::/32")
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")


def _ips(text: str, reserved: bool, counts: Counter[str]) -> str:
    text = _substituted(_IPV4, text, "ip", counts, lambda match: _is_ipv4(match, reserved))
    if ":" in text:
        text = _substituted(_IPV6, text, "ip", counts, lambda match: _is_ipv6(match[0], reserved))
    return text


def _is_ipv4(match: re.Match[str], reserved: bool) -> bool:
    """Tell an address from a version number."""
    try:
        address = ipaddress.IPv4Address(match[0])  # no number above 255, none with a leading zero
    except ValueError:
        return False
    before = _before(match)
    if _VERSION_BEFORE.search(before):
        return False
    if max(address.packed) <= _SMALL and not _ADDRESS_BEFORE.search(before):
        return False
    return reserved or (address.is_global and not address.is_multicast)


def _is_ipv6(candidate: str, reserved: bool) -> bool:
    """Tell an address from a time and from the names and slices of programs (`a::b`)."""
    try:
        address = ipaddress.IPv6Address(candidate)
    except ValueError:
        return False
    groups = sum(bool(group) for group in candidate.split(":"))
    if reserved:
        return groups >= 3 or address.is_link_local or address.is_loopback
    return groups >= 3 and address in _GLOBAL_V6 and address not in _DOCUMENTATION_V6 and address.is_global


# --- card numbers ----------------------------------------------------------------------------------------------------

_CARD = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}+(?![\w-]|\.\d)")
# First digits and lengths: Visa, Mastercard, American Express, Diners Club, Discover, JCB, Maestro, UnionPay.
_ISSUER = re.compile(
    r"4(?:\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35\d{14}|62\d{14,17}"
)


def _cards(text: str, reserved: bool, counts: Counter[str]) -> str:
    return _substituted(_CARD, text, "card", counts, _is_card)


def _is_card(match: re.Match[str]) -> bool:
    groups = [len(group) for group in re.split("[ -]", match[0])]
    if not (len(groups) == 1 or groups in ([4, 6, 5], [4, 6, 4]) or all(group == 4 for group in groups[:-1])):
        return False
    digits = "".join(filter(str.isdigit, match[0]))
    return len(set(digits)) > 1 and _ISSUER.fullmatch(digits) is not None and luhn(digits)


def luhn(digits: str) -> bool:
    """Tell whether the last digit is the check digit of the others (Luhn 1960, ISO/IEC 7812-1)."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


# --- phone numbers ---------------------------------------------------------------------------------------------------

_INTERNATIONAL = re.compile(
    r"(?<![\w.+*/^)\]-])(?:\+|00(?=[1-9]\d?[ -]))[1-9](?:[ ./()-]{0,2}+\d){7,14}+(?![\w+*/-]|\.\d)"
)
_NATIONAL = re.compile(
    r"(?<![\w.+/-])(?<!\d[ .])(?:"
    r"(?:1[ .-])?(?:\([2-9]\d{2}\) ?[2-9]\d{2}[ .-]\d{4}|[2-9]\d{2}(?P<s>[.-])[2-9]\d{2}(?P=s)\d{4})"  # North America
    r"|0[1-9](?P<t>[ .])\d{2}(?:(?P=t)\d{2}){3}"  # five pairs: France, Belgium
    r"|\(0[1-9]\d{1,3}\) ?\d{3,4}[ -]?\d{3,4}|0[1-9]\d{0,3}-\d{3,4}-\d{3,4}|0[1-9]\d \d{3,4} \d{4}"  # Britain, Germany, Japan
    r")(?![\w+/-]|\.\d| [0-9A-Fa-f]{2,4}\b)"
)
_CALLED = re.compile(
    r"\b(?:tel|telephone|telefon|phone|mobile|mobil|fax|whatsapp)\b(?: (?:number|no)\b)?[.:#]{0,2}+[ \t]{0,2}+"
    r"(?P<value>\(?\d(?:[ ./()-]{0,2}+\d){6,14}+)(?![\w/-]|\.\d)",
    re.IGNORECASE,
)
_BOOK_BEFORE = re.compile(r"(?:isbn|issn|doi|ean|gtin|asin|arxiv)[\s:#0-9xX-]*\Z")


def _phones(text: str, reserved: bool, counts: Counter[str]) -> str:
    for pattern, accept in ((_INTERNATIONAL, _is_international), (_NATIONAL, _is_national), (_CALLED, _is_called)):
        text = _substituted(pattern, text, "phone", counts, accept)
    return text


def _groups(number: str) -> list[int]:
    """Return the lengths of a number's groups of digits."""
    return [len(group) for group in re.findall(r"\d+", number)]


def _is_international(match: re.Match[str]) -> bool:
    """Tell a phone number from sums, decimals and differences: groups of two digits and more, seldom more than six."""
    groups, digits = _groups(match[0]), sum(_groups(match[0]))
    if re.fullmatch(r"\+\d+\.\d+", match[0]) or digits > 15 or match[0].count("(") != match[0].count(")"):
        return False
    if len(groups) == 1:
        return digits >= 10
    return groups[0] <= 4 and len(groups) <= 7 and all(group >= 2 for group in groups[2:]) and groups[-1] <= 9


def _is_national(match: re.Match[str]) -> bool:
    balanced = match[0].count("(") == match[0].count(")")
    return balanced and not _BOOK_BEFORE.search(_before(match))


def _is_called(match: re.Match[str]) -> bool:
    """Take whatever number a word introduces, dates apart."""
    digits = sum(_groups(match["value"]))
    return 7 <= digits <= 15 and not re.search(r"(?<!\d)(?:19|20)\d\d[-./]\d\d[-./]\d\d", match["value"])


_FINDERS: dict[str, Callable[[str, bool, Counter[str]], str]] = {
    "key": _keys,
    "email": _emails,
    "ip": _ips,
    "card": _cards,
    "phone": _phones,
}
