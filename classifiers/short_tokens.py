"""The first tokens of texts, cheaply: a tokenizer that reads no more of a text than it needs for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AT_ONCE = 256  # texts; what the tokenizer says of them beside ids is many times larger than the ids
FIRST_LOOK = 5  # characters per token; English and code have three to four and a half

Tokens = npt.NDArray[np.int32]


class ShortTokens:
    """The first `max_tokens` tokens of texts.

    A tokenizer reads a text to its end before it cuts; here it sees `FIRST_LOOK` characters per token first, up to white space,
    and the whole text only where these are not enough. Words are split at white space before anything else, so the tokens are
    those of the whole text.

    Args:
        tokenizer: of the `tokenizers` library; a copy is used.
        max_tokens: the most tokens, special ones included.
        special: whether to add the tokenizer's special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, special: bool = True) -> None:
        from tokenizers import Tokenizer as Copied

        self._tokenizer = Copied.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self.max_tokens = max_tokens
        self.special = special

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        """Return each text's token ids, int32 (tokens,)."""
        found: list[Tokens] = []
        for start in range(0, len(texts), AT_ONCE):
            found += self._tokens(texts[start : start + AT_ONCE])
        return found

    def _tokens(self, texts: Sequence[str]) -> list[Tokens]:
        beginnings = [_beginning(text, FIRST_LOOK * self.max_tokens) for text in texts]
        found = self._encoded(beginnings)
        short = [
            row
            for row, tokens in enumerate(found)
            if len(tokens) < self.max_tokens and len(beginnings[row]) < len(texts[row])
        ]
        for row, tokens in zip(short, self._encoded([texts[row] for row in short]), strict=True):
            found[row] = tokens
        return found

    def _encoded(self, texts: Sequence[str]) -> list[Tokens]:
        encodings: Sequence[Any] = self._tokenizer.encode_batch_fast(texts, add_special_tokens=self.special)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def _beginning(text: str, characters: int) -> str:
    """Return at most `characters` characters, ending before white space; the whole text if it has none there."""
    if len(text) <= characters:
        return text
    end = max(text.rfind(" ", 0, characters), text.rfind("\n", 0, characters))
    return text[:end] if end > 0 else text
