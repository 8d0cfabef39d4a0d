"""What a model writes while it is trained: it goes on from fixed prompts, on all ranks together, as it lies over them.

A sharded model runs only where every rank runs it, so all of them do the same work and take rank 0's tokens. There is no cache
of keys and values: each token is a whole forward pass of the rows so far, which is cheap at the sizes that are looked at while
they learn. Nothing that training depends on is touched: no dropout, no random number but those of a generator of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from training.parallel import World, reshard

if TYPE_CHECKING:
    from training.model import LanguageModel
    from training.settings import LoopSettings

PADDING_MULTIPLE = 64


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids.

    Attributes:
        texts: as they were given.
        ids: as the model reads them.
        tokenizer: of transformers; turns what the model writes into text.
        end: ids that end a text.
    """

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    tokenizer: Any
    end: frozenset[int]


def read_prompts(texts: Sequence[str], tokenizer_folder: Path, chat: bool) -> Prompts:
    """Return prompts as a tokenizer has them; with `chat`, as the user's message, where it has a template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    chat = chat and bool(tokenizer.chat_template)
    ids = []
    for text in texts:
        if chat:
            message = [{"role": "user", "content": text}]
            ids.append(list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)))
        else:
            ids.append(list(tokenizer(text).input_ids))
    ends = {tokenizer.eos_token_id} | {tokenizer.convert_tokens_to_ids(word) for word in ("<|end|>", "<|im_end|>")}
    return Prompts(texts, ids, tokenizer, frozenset(end for end in ends if isinstance(end, int)))


class Samples:
    """Callable: what the model writes now.

    Args:
        prompts: what it goes on from.
        settings: how often, how long, how hot.
        seed: of the sampling, where it is not greedy; with the step it gives the same text again.
    """

    def __init__(self, prompts: Prompts, settings: LoopSettings, seed: int) -> None:
        self._prompts, self._seed = prompts, seed
        self._length, self._temperature = settings.sample_tokens, settings.sample_temperature

    @torch.no_grad()
    def __call__(self, model: LanguageModel, world: World, step: int) -> list[dict[str, str]]:
        """Return `prompt` and `text` of each sample; all ranks call it."""
        generator = torch.Generator().manual_seed(hash((self._seed, step)) % (1 << 63))
        context = int(model.model.config.max_position_embeddings)
        rows = [list(ids[-(context - 1) :]) for ids in self._prompts.ids]
        starts = [len(row) for row in rows]
        open_rows = set(range(len(rows)))
        model.eval()
        with torch.compiler.set_stance(
            "force_eager"
        ):  # other shapes than training's: nothing compiled may come of them
            for _ in range(self._length):
                logits = model.next_logits(*_padded(rows, context, world.device)).cpu()
                chosen = self._choose(logits, generator).to(world.device)
                dist.broadcast(chosen, src=0)
                for row, token in enumerate(chosen.tolist()):
                    if row not in open_rows:
                        continue
                    if token in self._prompts.end or len(rows[row]) + 1 >= context:
                        open_rows.remove(row)
                    else:
                        rows[row].append(token)
                if not open_rows:
                    break
        reshard(model)
        model.train()
        decode = self._prompts.tokenizer.decode
        return [
            {"prompt": prompt, "text": decode(row[start:], skip_special_tokens=True)}
            for prompt, row, start in zip(self._prompts.texts, rows, starts, strict=True)
        ]

    def _choose(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the next token of each row, int64 (rows,), from float32 logits (rows, vocabulary)."""
        if self._temperature == 0:
            return logits.argmax(dim=-1)
        return torch.multinomial((logits / self._temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def _padded(rows: Sequence[Sequence[int]], context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows as one int64 (rows, T), filled up behind their ends, where nothing looks, and their last positions."""
    longest = max(map(len, rows))
    length = min(-(-longest // PADDING_MULTIPLE) * PADDING_MULTIPLE, context)
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return tokens.to(device), torch.tensor([len(row) - 1 for row in rows], device=device)
