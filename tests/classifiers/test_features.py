"""Vectors of texts: what they are made of, that speed does not change them, and texts that no model should stumble over."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer

from classifiers.cpu_attention import plain_attention
from classifiers.encoder import batches, rounded
from classifiers.features import Features, FeatureSettings, features_identity, load_features, readable
from classifiers.packed_linear import NARROW, PACKED, pack_linears
from classifiers.short_tokens import ShortTokens
from hornbook.errors import ModelError
from hornbook.models import resolve

STDLIB = Path(sysconfig.get_path("stdlib"))
CODE = [(STDLIB / f"{name}.py").read_text() for name in ("heapq", "bisect", "this", "textwrap")]
TEXTS = [*CODE, "", "one", "A sentence of seven plain words, isn't it?", "Äpfel 苹果 🍎 e\u0301", "x" * 5000, " \n\t "]
MINILM, SMOLLM = "all-minilm-l6-v2", "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def exact() -> Features:
    return load_features(FeatureSettings(precision="float32"))


def sentence_transformers_vectors(texts: list[str], max_tokens: int) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve(MINILM).path), device="cpu", local_files_only=True)
    model.max_seq_length = max_tokens
    heads = [readable(text, max_tokens) for text in texts]
    return np.asarray(model.encode(heads, show_progress_bar=False))


def test_the_vectors_are_those_of_sentence_transformers(exact: Features):
    plain = sentence_transformers_vectors(TEXTS, 256)
    assert exact.dimension == plain.shape[1]
    assert np.abs(exact.embed(TEXTS) - plain).max() < 1e-5
    rounded_off = load_features(FeatureSettings(precision="bfloat16")).embed(TEXTS)
    assert (rounded_off * plain).sum(axis=1).min() > 0.9995


def test_a_vector_depends_neither_on_its_neighbours_nor_on_the_batch(exact: Features):
    together = exact.embed(TEXTS)
    alone = np.concatenate([exact.embed([text]) for text in TEXTS])
    small = load_features(FeatureSettings(precision="float32", batch_tokens=64)).embed(TEXTS)
    assert np.abs(together - alone).max() < 1e-5 and np.abs(together - small).max() < 1e-5
    assert exact.embed([]).shape == (0, exact.dimension)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_causal_model_gives_its_last_hidden_states_pooled(pooling: Any):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(resolve(SMOLLM).path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = FeatureSettings(kind="causal-lm", pooling=pooling, max_tokens=16, precision="float32")
    assert settings.model == SMOLLM
    features = load_features(settings)
    texts = ["def add(a, b):", CODE[0], "two words"]
    found = features.embed([*texts, ""])
    assert found.shape == (4, model.config.hidden_size) and np.isfinite(found).all()
    for text, vector in zip(texts, found, strict=False):
        ids = tokenizer(readable(text, 16), return_tensors="pt")["input_ids"][:, :16]
        with torch.inference_mode():
            states = model(ids, output_hidden_states=True).hidden_states[-1][0]
        wanted = states.mean(dim=0) if pooling == "mean" else states[-1]
        assert float(torch.from_numpy(vector) @ (wanted / wanted.norm())) > 0.9999


def test_the_architecture_of_phi_1_embeds_in_either_precision(tmp_path: Path):
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "bos_token_id": 0, "eos_token_id": 0}
    AutoModel.from_config(AutoConfig.for_model("codegen", vocab_size=49_152, **sizes)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(str(resolve(SMOLLM).path)).save_pretrained(tmp_path)
    wide, narrow = (
        load_features(FeatureSettings(kind="causal-lm", model=str(tmp_path), precision=precision, max_tokens=32))  # type: ignore[arg-type]
        for precision in ("float32", "bfloat16")
    )
    assert (wide.embed(TEXTS) * narrow.embed(TEXTS)).sum(axis=1).min() > 0.999


def test_static_vectors_are_weighted_means_of_the_words(exact: Features):
    features = load_features(FeatureSettings(kind="static"))
    tokenizer = Tokenizer.from_file(str(resolve(MINILM).path / "tokenizer.json"))
    table = exact._model[0].auto_model.embeddings.word_embeddings.weight.detach().numpy()  # type: ignore[attr-defined]
    tokenizer.no_truncation()
    ids = tokenizer.encode(TEXTS[6], add_special_tokens=False).ids
    wanted = (table[ids] * np.log1p(ids)[:, None]).mean(axis=0)
    found = features.embed(TEXTS)
    assert np.allclose(found[6], wanted / np.linalg.norm(wanted), atol=1e-6)
    assert not found[4].any() and np.allclose(np.linalg.norm(found[:4], axis=1), 1)
    assert np.array_equal(features.embed(TEXTS[::-1]), found[::-1])


@pytest.mark.parametrize("name", [MINILM, SMOLLM])
@pytest.mark.parametrize("max_tokens", [8, 256])
def test_the_first_tokens_are_those_of_the_whole_text(name: str, max_tokens: int):
    tokenizer = Tokenizer.from_file(str(resolve(name).path / "tokenizer.json"))
    modules = [path.read_text() for path in sorted(STDLIB.glob("*.py"))[:40]]
    texts = [*TEXTS, *modules, " " * 4000 + "word", "苹果" * 2000, "a" * 2000 + " b", "\n".join("x" * 3000)]
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    wanted = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert [found.tolist() for found in ShortTokens(tokenizer, max_tokens)(texts)] == wanted


@pytest.mark.parametrize("kind", ["sentence-transformers", "causal-lm", "static"])
def test_no_text_stops_a_model(kind: Any):
    features = load_features(FeatureSettings(kind=kind, max_tokens=16))
    texts = ["", "\x00", "half a pair \ud800 of UTF-16", "word " * 200_000, "y" * 1_000_000, "a"]
    vectors = features.embed(texts)
    assert vectors.shape == (6, features.dimension) and vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


def test_settings_name_the_model_of_their_kind():
    assert FeatureSettings(kind="static").model == FeatureSettings().model == MINILM
    assert FeatureSettings(kind="causal-lm", model="mine/own").model == "mine/own"
    with pytest.raises(ValidationError, match="pooling: last is for the kind causal-lm"):
        FeatureSettings(pooling="last")
    quick = features_identity(FeatureSettings(batch_tokens=7, threads=2))
    assert quick == features_identity(FeatureSettings()) != features_identity(FeatureSettings(kind="static"))
    assert json.loads(json.dumps(quick)) == quick


def test_a_model_that_cannot_embed_is_named(tmp_path: Path):
    for name, kind, message in (
        (_folder(tmp_path / "odd", {"odd": torch.zeros(4, 4)}), "static", "no word vectors under a known name"),
        (_folder(tmp_path / "bare", {"odd": torch.zeros(4, 4)}, tokenizer=False), "static", "no tokenizer.json"),
        (_folder(tmp_path / "none", {"odd": torch.zeros(4, 4)}), "causal-lm", "not a language model"),
        (_folder(tmp_path / "neither", {"odd": torch.zeros(4, 4)}), "sentence-transformers", "not a sentence-trans"),
    ):
        with pytest.raises(ModelError, match=message):
            load_features(FeatureSettings(kind=kind, model=name))  # type: ignore[arg-type]


def _folder(folder: Path, weights: dict[str, torch.Tensor], tokenizer: bool = True) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    save_file(weights, folder / "model.safetensors")
    if tokenizer:
        shutil.copy(resolve(MINILM).path / "tokenizer.json", folder)
    return str(folder)


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_packed_layers_compute_the_same(kind: str):
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    if kind in ("llama", "mistral", "qwen2", "qwen3"):
        sizes["num_key_value_heads"] = 2
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=50, **sizes)).eval()
    ids = torch.randint(5, 50, (3, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.inference_mode():
        plain = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        for precision, difference in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
            other = AutoModel.from_config(model.config).eval()
            other.load_state_dict(model.state_dict())
            pack_linears(other, precision, narrow=kind in NARROW)
            found = other(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
            assert (found.float() - plain).abs().max() < difference


def test_plain_attention_is_attention():
    query, key, value = torch.randn(3, 2, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    mask[1, :, :, 5:] = False
    for given_mask in (None, mask):
        wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=given_mask)
        found, _ = plain_attention(torch.nn.Identity(), query, key, value, given_mask)
        assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_batches_take_every_row_once_and_stay_small(lengths: list[int], batch_tokens: int):
    made = list(batches(lengths, batch_tokens))
    assert sorted(row for rows in made for row in rows) == list(range(len(lengths)))
    for rows in made:
        longest = max(lengths[row] for row in rows)
        assert len(rows) == 1 or len(rows) * rounded(longest) <= batch_tokens
