"""Makes a model ready to use: a Hugging Face folder with a model card, proved to load in transformers and to serve in vLLM.

The exported folder, loaded anew, must predict what the model does, and so must every GGUF file, within its type's tolerance;
the figures stand in the manifest and in the card. transformers and vLLM then write from the same prompts. What they wrote
goes into the report, with how many of vLLM's greedy tokens agree with transformers'. In bf16 two nearly equal logits may
change places, and all that follows differs: that is normal. A model that was loaded wrongly disagrees from the first token on.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from hornbook.engines.interface import EngineSettings, Request, Sampling
from hornbook.errors import ModelError
from hornbook.plan import derive_seed
from hornbook.serving import unserved
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult
from training.gguf_export import GgufType
from training.model_card import model_card

if TYPE_CHECKING:
    from hornbook.engines.pool import EngineHandle

MODEL, GGUF = "model", "gguf"
GREEDY_TOKENS = 16
LEAST_FIRST_TOKENS = 0.5
"""Share of prompts whose first greedy token must agree."""
STARTS = ("Once upon a time", "One day, a little girl", "The sun is", "def add(a, b):", "Water is")
QUESTIONS = (
    "What is a friend?",
    "Why do plants need water?",
    "What does the story teach us?",
    "How do we count to ten?",
    "What is the sun?",
)


class ExportSettings(Settings):
    """How the exported model is tried out."""

    starts: tuple[str, ...] = Field(STARTS, description="Beginnings that transformers continues.")
    questions: tuple[str, ...] = Field(
        QUESTIONS, min_length=1, description="Messages that vLLM and transformers answer."
    )
    sampling: Sampling = Field(Sampling(max_tokens=100), description="How the samples are drawn.")
    serving: EngineSettings = Field(
        EngineSettings(), description="The engine that serves it; the stage sets `model` and bounds `max_model_len`."
    )
    licence: str = Field("other", description="Licence in the model card.")
    gguf: tuple[GgufType, ...] = Field(
        (),
        description="GGUF files to make, for llama.cpp; what cannot be made is left out, with the reason in the manifest.",
    )
    llama_cpp: str = runtime("", description="llama.cpp's folder, for `gguf`; default: its tools are on PATH.")


class Export(Stage):
    """Copies the model, writes its card, samples from it twice."""

    kind = "export"
    produces = "model"
    Settings = ExportSettings
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input("model")}
    settings: ExportSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the samples."""
        samples = len(self.settings.starts) + 2 * len(self.settings.questions)
        return Expected(planned=samples, unit="samples", rows=samples)

    def run(self, context: StageContext) -> StageResult:
        """Export, then load and serve what was exported.

        Raises:
            ModelError: transformers or vLLM does not load it, or they disagree.
        """
        source, store = context.input("model"), context.artifact.store
        made_from = source.local_folder(MODEL)
        with context.scratch() as scratch:
            folder = scratch / MODEL
            _copy(made_from, folder)
            proof, gguf = self._proved(made_from, folder, scratch / GGUF)
            for kind, found in gguf.items():
                if "left_out" in found:
                    print(f"{context.stage}: no GGUF {kind}: {found['left_out']}", file=sys.stderr)
            proof = source.manifest.metrics.get("proof") or proof  # the trainer's own, of the same files
            (folder / "README.md").write_text(model_card(source, context.stage, self.settings.licence, proof, gguf))
            files = context.save_folder(folder, MODEL)
            if any("file" in found for found in gguf.values()):
                files += context.save_folder(scratch / GGUF, GGUF)
            # A replica on another node sees the store, not this scratch folder.
            served_from = store.describe(f"{context.artifact.folder}/{MODEL}", options=True)
            seed = derive_seed(context.seed, "samples")
            with context.progress(len(self.settings.starts) + 2 * len(self.settings.questions), "samples") as progress:
                samples, greedy = sample_with_transformers(folder, self.settings, seed)
                progress.advance(len(samples))
                context.check_stop()
                if self.settings.serving.kind == "vllm" and (reason := unserved(_config(folder))):
                    print(f"{context.stage}: not served: {reason}", file=sys.stderr)
                    return StageResult({"samples": samples, "proof": proof, "gguf": gguf, "not_served": reason}, files)
                handle = context.open_engine(_serving(self.settings.serving, folder, served_from))
                served, served_greedy = asyncio.run(_sample_with_engine(handle, self.settings, seed))
                progress.advance(len(served))
            agreement, first = greedy_agreement(folder, greedy, served_greedy)
        if self.settings.serving.kind == "vllm" and first < LEAST_FIRST_TOKENS:
            raise ModelError(
                f"vLLM and transformers write different words from the same weights: only {100 * first:.0f}% of the "
                f"prompts have the same first greedy token, {100 * agreement:.0f}% of {GREEDY_TOKENS} tokens agree: "
                f"vLLM writes {served_greedy}",
                "use another engine for this architecture",
            )
        figures = {
            "greedy_agreement": round(agreement, 4),
            "first_token_agreement": round(first, 4),
            "proof": proof,
            "gguf": gguf,
        }
        return StageResult(metrics={"samples": _alternating(samples, served)} | figures, files=files)

    def _proved(self, made_from: Path, folder: Path, gguf: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the proofs of the folder and of the GGUF files, which are made on the way."""
        import torch
        from transformers import AutoModelForCausalLM

        from training.gguf_export import write_gguf
        from training.proof import log_probabilities, prove_folder

        model = AutoModelForCausalLM.from_pretrained(made_from, trust_remote_code=False, dtype=torch.float32)
        rows = _proof_rows(folder, self.settings, int(model.config.max_position_embeddings))
        predictions = log_probabilities(model, rows)
        del model
        proof = prove_folder(folder, rows, predictions)
        if not self.settings.gguf:
            return proof, {}
        return proof, write_gguf(folder, self.settings.gguf, gguf, self.settings.llama_cpp, rows, predictions)


def sample_with_transformers(
    folder: Path, settings: ExportSettings, seed: int
) -> tuple[list[dict[str, str]], list[list[int]]]:
    """Return samples (from starts, then answers) and the greedy answers' first tokens, special ones left out.

    Raises:
        ModelError: the folder does not load without remote code.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} does not load in transformers: {error}") from error
    room = model.config.max_position_embeddings - settings.sampling.max_tokens

    def write(inputs: Any, tokens: int, sampled: bool) -> list[int]:
        options: dict[str, Any] = {"do_sample": sampled, "max_new_tokens": tokens}
        if sampled:
            options |= {"temperature": settings.sampling.temperature, "top_p": settings.sampling.top_p}
        ids = inputs["input_ids"][:, -max(room, 1) :]
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        return [int(token) for token in output[0, ids.shape[1] :] if int(token) not in tokenizer.all_special_ids]

    def chat(question: str) -> Any:
        message = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = settings.sampling.max_tokens
        samples = [
            {"prompt": start, "text": str(tokenizer.decode(write(tokenizer(start, return_tensors="pt"), tokens, True)))}
            for start in settings.starts
        ]
        samples += [
            {"prompt": each, "text": str(tokenizer.decode(write(chat(each), tokens, True)))}
            for each in settings.questions
        ]
        greedy = [write(chat(each), GREEDY_TOKENS, False) for each in settings.questions]
    return [{"engine": "transformers"} | sample for sample in samples], greedy


async def _sample_with_engine(
    handle: EngineHandle, settings: ExportSettings, seed: int
) -> tuple[list[dict[str, str]], list[str]]:
    """Return the engine's answers and its greedy answers' first words."""
    requests = [
        Request(
            messages=({"role": "user", "content": question},), seed=derive_seed(seed, number), tag=f"export/{number}"
        )
        for number, question in enumerate(settings.questions)
    ]
    replies = await handle.generate(requests, settings.sampling)
    greedy = await handle.generate(requests, Sampling(temperature=0, max_tokens=GREEDY_TOKENS))
    if failed := [reply.error for reply in [*replies, *greedy] if reply.finish_reason == "error"]:
        raise ModelError(f"{settings.serving.kind} does not serve the exported model: {failed[0]}")
    samples = [
        {"engine": settings.serving.kind, "prompt": question, "text": reply.text}
        for question, reply in zip(settings.questions, replies, strict=True)
    ]
    return samples, [reply.text for reply in greedy]


def _proof_rows(folder: Path, settings: ExportSettings, context: int) -> list[list[int]]:
    """Return the ids of the beginnings and the questions, cut to the model's context."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    rows: list[list[int]] = [tokenizer(text)["input_ids"] for text in settings.starts]
    rows += [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in settings.questions
    ]
    return [row[:context] for row in rows if row]


def _serving(settings: EngineSettings, folder: Path, model: str) -> EngineSettings:
    context = _config(folder)["max_position_embeddings"]
    return settings.model_copy(update={"model": model, "max_model_len": min(settings.max_model_len, context)})


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


def greedy_agreement(folder: Path, ours: Sequence[list[int]], texts: Sequence[str]) -> tuple[float, float]:
    """Compare transformers' greedy answers, token ids without special ones, with the texts of an engine.

    An engine tells no ids, and the ids of its text need not be those it wrote: a token counts as the same if the text of
    all tokens up to it begins the engine's text.

    Args:
        folder: the model's, with its tokenizer.

    Returns:
        The share of tokens up to the first difference, over all pairs, and the share of pairs whose first token agrees.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    same = total = first = 0
    for ids, text in zip(ours, texts, strict=True):
        prefixes = [str(tokenizer.decode(ids[: number + 1])) for number in range(len(ids))]
        agreed = max((number + 1 for number, prefix in enumerate(prefixes) if text.startswith(prefix)), default=0)
        rest = text.removeprefix(prefixes[agreed - 1]) if agreed else text
        same += agreed
        total += max(len(ids), agreed + len(tokenizer(rest, add_special_tokens=False)["input_ids"]))
        first += agreed > 0 or not (ids or text)
    return (same / total if total else 1.0), (first / len(texts) if texts else 1.0)


def _alternating(one: Sequence[dict[str, str]], other: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return both lists' samples in turn, so that the first ten show both."""
    longest = max(len(one), len(other))
    return [found[number] for number in range(longest) for found in (one, other) if number < len(found)]
