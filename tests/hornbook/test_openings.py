"""Which tokens an avoided opening touches, by the real tokenizer, and the processor for GPUs by hand-made tensors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer

from hornbook import models
from hornbook.engines.openings import RULES, opening_rules


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(Path(models.resolve("smollm2-135m-instruct").path) / "tokenizer.json"))


def rules_of(tokenizer: Tokenizer, *avoid: tuple[str, float]) -> dict[tuple[str, str], float]:
    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    found = opening_rules(avoid, encode, tokenizer.decode)
    assert len({(tuple(before), token) for before, token, _ in found}) == len(found)
    return {(tokenizer.decode(before), tokenizer.decode([token])): bias for before, token, bias in found}


def test_a_first_word_is_met_in_all_its_forms(tokenizer: Tokenizer) -> None:
    assert rules_of(tokenizer, ("Once", -3.0)) == {
        ("", "Once"): -3.0,
        ("", " Once"): -3.0,
        ("\n", "Once"): -3.0,
        ("\n\n", "Once"): -3.0,
        (" ", "Once"): -3.0,
        ('"', "Once"): -3.0,
        ("**", "Once"): -3.0,
    }


def test_a_later_word_is_touched_only_after_those_before_it(tokenizer: Tokenizer) -> None:
    found = rules_of(tokenizer, ("Once upon a", -2.0))
    assert found[("Once upon", " a")] == found[(" Once upon", " a")] == found[('"Once upon', " a")] == -2.0
    assert {token for _, token in found} == {" a"}
    assert all(before.endswith("Once upon") for before, _ in found)


def test_of_a_word_of_several_tokens_the_first_is_touched(tokenizer: Tokenizer) -> None:
    found = rules_of(tokenizer, ("The xylophonist", -2.0))
    (token,) = {token for before, token in found if before == "The"}
    assert token != " xylophonist" and " xylophonist".startswith(token)


def test_the_lower_of_two_biases_counts_and_no_words_mean_no_rules(tokenizer: Tokenizer) -> None:
    once = rules_of(tokenizer, ("Once", -4.0))
    assert rules_of(tokenizer, ("Once", -1.0), ("Once", -4.0), ("Once", -2.0), ("  ", -9.0), ("", -9.0)) == once
    long = " ".join(["word"] * 30)
    assert rules_of(tokenizer, (long, -1.0)) == {}


def test_a_tokenizer_that_puts_a_space_before_every_text() -> None:
    """As SentencePiece does: "Once" at a text's beginning is "▁Once", after a line break it is "Once"."""
    vocabulary = {"▁Once": 1, "Once": 2, "▁upon": 3, "\n": 4, "▁": 5, '"': 6, "**": 7}

    def encode(text: str) -> list[int]:
        text = "▁" + text.replace(" ", "▁")
        ids = []
        while text:
            piece = max((name for name in vocabulary if text.startswith(name)), key=len)
            ids.append(vocabulary[piece])
            text = text[len(piece) :]
        return ids

    def decode(ids: list[int]) -> str:
        names = {number: name for name, number in vocabulary.items()}
        return "".join(names[number] for number in ids).replace("▁", " ").removeprefix(" ")

    found = {(tuple(before), token) for before, token, _ in opening_rules([("Once", -1.0)], encode, decode)}
    assert {((), 1), ((), 2), ((5, 4), 2)} <= found
    found = {(tuple(before), token) for before, token, _ in opening_rules([("Once upon", -1.0)], encode, decode)}
    assert {((1,), 3), ((2,), 3)} <= found


@pytest.mark.slow
def test_the_processor_for_gpus_compares_on_the_device() -> None:
    """vLLM's CPU build runs model runner V1 (tested with the real engine in test_engine_pool); V2 is GPUs'."""
    import torch

    from hornbook.engines.openings_processor import AvoidOpeningsV2

    tokens = torch.zeros((8, 32), dtype=torch.int32)
    lengths = torch.zeros(8, dtype=torch.int32).numpy()
    states = SimpleNamespace(
        device=torch.device("cpu"),
        all_token_ids=SimpleNamespace(gpu=tokens),
        prompt_len=SimpleNamespace(np=lengths),
    )
    processor = AvoidOpeningsV2(None, states)
    rules = [[[], 5, -3.0], [[], 6, -1.0], [[5], 7, -2.0], [[6], 7, -4.0], [[5, 7], 8, -5.0]]
    parameters: Any = SimpleNamespace(extra_args={RULES: rules})
    nothing: Any = SimpleNamespace(extra_args=None)
    assert processor.add_request(3, parameters) and not processor.add_request(1, nothing)
    lengths[3], lengths[1] = 4, 2

    def biases(reply: list[int]) -> dict[int, float]:
        tokens[3, 4 : 4 + len(reply)] = torch.tensor(reply, dtype=torch.int32)
        context = SimpleNamespace(
            idx_mapping_np=torch.tensor([1, 3]).numpy(),
            seq_lens_upper_bound_np=torch.tensor([2 + len(reply), 4 + len(reply)]).numpy(),
        )
        logits = processor.apply(torch.zeros((2, 10)), context)
        assert not logits[0].any()
        return {token: logits[1, token].item() for token in logits[1].nonzero().flatten().tolist()}

    assert biases([]) == {5: -3.0, 6: -1.0}
    assert biases([5]) == {7: -2.0}
    assert biases([6]) == {7: -4.0}
    assert biases([9]) == {}
    assert biases([5, 7]) == {8: -5.0}
    assert biases([5, 7, 8]) == {}
    assert biases([5]) == {}  # once past the longest opening, a reply is left alone
    assert not processor.add_request(3, nothing)  # the slot's next request has no openings to avoid
    assert biases([]) == {}
