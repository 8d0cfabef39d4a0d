"""The logits processors that make openings of a reply unlikely, at its start only. vLLM loads one in the engine's process.

A request brings its rules (see openings.py) in `SamplingParams.extra_args`. A request without them costs one look at that
when it enters the batch; one with them a look-up for each of its first tokens, until the reply is longer than every
opening. vLLM has two model runners, whose processors differ: V1 (its CPU build) and V2 (GPUs). Neither of the classes is
for speculation, where vLLM's V1 refuses custom processors altogether.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from hornbook.engines.openings import RULES


class AvoidOpenings(LogitsProcessor):
    """For model runner V1: rows of the logits are requests of the batch, by index."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._requests: dict[int, _Opening] = {}

    def is_argmax_invariant(self) -> bool:
        """A bias may change which token is the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests into, out of and through the batch."""
        process_dict_updates(self._requests, batch_update, _opening)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Add the biases in place. logits: (requests, words of the vocabulary)."""
        rows: list[int] = []
        tokens: list[int] = []
        biases: list[float] = []
        for row in list(self._requests):
            opening = self._requests[row]
            if len(opening.written) > opening.longest:
                del self._requests[row]
            elif found := opening.rules.get(tuple(opening.written)):
                rows += [row] * len(found)
                tokens += found.keys()
                biases += found.values()
        if rows:
            where = torch.tensor([rows, tokens], device=logits.device)
            values = torch.tensor(biases, dtype=logits.dtype, device=logits.device)
            logits.index_put_((where[0], where[1]), values, accumulate=True)
        return logits


class _Opening:
    """One request's rules, and the tokens of its reply: vLLM's own list, which grows."""

    def __init__(self, rules: list[Any], written: list[int]) -> None:
        self.rules: dict[tuple[int, ...], dict[int, float]] = {}
        for before, token, bias in rules:
            self.rules.setdefault(tuple(before), {})[token] = bias
        self.longest = max(map(len, self.rules))
        self.written = written


def _opening(parameters: SamplingParams, prompt: list[int] | None, written: list[int]) -> _Opening | None:
    rules = (parameters.extra_args or {}).get(RULES)
    return _Opening(rules, written) if rules else None


class AvoidOpeningsV2(LogitsProcessorV2):
    """For model runner V2: what was written is on the device, so the comparison is made there, without waiting for it."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self._states = req_states
        self._requests: dict[int, dict[int, _RulesOfLength]] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take a request's rules into its slot; tell whether it has any."""
        rules = (sampling_params.extra_args or {}).get(RULES)
        self._requests.pop(req_idx, None)
        if rules:
            lengths = sorted({len(before) for before, _, _ in rules})
            self._requests[req_idx] = {
                length: _RulesOfLength([rule for rule in rules if len(rule[0]) == length], self._states.device)
                for length in lengths
            }
        return bool(rules)

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Add the biases in place. logits: (requests, words of the vocabulary)."""
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            rules = self._requests.get(slot)
            if rules is None:
                continue
            start = int(self._states.prompt_len.np[slot])
            written = int(ctx.seq_lens_upper_bound_np[row]) - start
            if written > max(rules):
                del self._requests[slot]
            elif found := rules.get(written):
                reply = self._states.all_token_ids.gpu[slot, start : start + written]
                applies = (found.before == reply).all(dim=1)
                logits[row].index_add_(0, found.tokens, found.biases.to(logits.dtype) * applies)
        return logits


class _RulesOfLength:
    """One request's rules that apply after so many tokens, as tensors: before (rules, length), tokens and biases (rules)."""

    def __init__(self, rules: list[Any], device: torch.device) -> None:
        befores, tokens, biases = zip(*rules, strict=True)
        self.before = torch.tensor(befores, dtype=torch.int64, device=device).reshape(len(rules), -1)
        self.tokens = torch.tensor(tokens, dtype=torch.int64, device=device)
        self.biases = torch.tensor(biases, dtype=torch.float32, device=device)
