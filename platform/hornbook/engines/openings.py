"""From openings to avoid, in words, to what a logits processor can use: tokens of the model.

A rule is: where the reply's tokens so far are `before`, add `bias` to the logit of `token`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Rule = tuple[list[int], int, float]
"""(before, token, bias); lists and numbers only, because it travels to the engine's process."""

LEADS = ("", " ", "\n", "\n\n", '"', "**")
"""What a reply may put in front of its first word."""

RULES = "hornbook_avoid"
"""The name under which a request's rules travel, in vLLM's `SamplingParams.extra_args`."""

_MOST_TOKENS_BEFORE = 12


def opening_rules(
    avoid: Sequence[tuple[str, float]], encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]
) -> list[Rule]:
    """Return the rules that make openings unlikely.

    Args:
        avoid: pairs of an opening's first words and the bias on the first token of the last of them.
        encode: text to token ids, without special tokens.
        decode: token ids to text.

    Each opening counts with each of the LEADS, as the tokenizer writes both together and each alone. Of several biases on one
    token the lowest counts. An opening without words has no rules.
    """
    rules: dict[tuple[tuple[int, ...], int], float] = {}
    for words, bias in avoid:
        *first, last = words.split() or [""]
        if not last:
            continue
        text = " ".join([*first, last])
        for lead in LEADS:
            known = (lead + " ".join(first)).strip()
            for whole in (encode(lead + text), [*(encode(lead) if lead else []), *_inside_a_text(text, encode)]):
                count = _tokens_before(whole, known, decode)
                if count is not None:
                    key = (tuple(whole[:count]), whole[count])
                    rules[key] = min(bias, rules.get(key, bias))
    return [(list(before), token, bias) for (before, token), bias in rules.items()]


def _inside_a_text(text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Encode a text as it stands after a line break: some tokenizers put a space before whatever comes first."""
    line, both = encode("\n"), encode("\n" + text)
    return both[len(line) :] if both[: len(line)] == line else encode(text)


def _tokens_before(tokens: list[int], known: str, decode: Callable[[list[int]], str]) -> int | None:
    """Return how many tokens come before the one that first writes beyond `known`; None where it comes too late."""
    for count in range(min(len(tokens), _MOST_TOKENS_BEFORE + 1)):
        if len(decode(tokens[: count + 1]).strip()) > len(known):
            return count
    return None
