"""What every engine takes and gives, so that a stage never knows which engine serves it.

A request either gets a reply or a failure *of its own*: an engine never raises for one bad row, so a batch is never
lost to its worst member. And what is not the row's fault never becomes its failure: an engine that is gone, an endpoint
that is down and a spent budget raise, because a failed row is data that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from hornbook.errors import EngineError
from hornbook.settings import Settings, runtime

FinishReason = Literal["stop", "length", "error"]
Messages = tuple[dict[str, str], ...]
"""A chat: role and content of each turn."""


class Sampling(Settings):
    """How text is sampled. Part of each document's key: another temperature is another document."""

    temperature: float = Field(0.8, ge=0, le=5, description="Softmax temperature; 0 is greedy decoding.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus sampling mass; below 1 sorts the vocabulary at each step, slow on a CPU."
    )
    top_k: int = Field(0, ge=0, description="Keep the k likeliest tokens; 0 keeps all.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Drop tokens below this share of the likeliest one's probability."
    )
    repetition_penalty: float = Field(1.0, gt=0, le=3, description="Above 1 discourages tokens already seen.")
    max_tokens: int = Field(400, ge=1, description="Longest reply in tokens; one cut here has finish reason 'length'.")
    min_tokens: int = Field(0, ge=0, description="The model cannot end its reply before this many tokens.")
    end_bias: float = Field(
        0.0,
        ge=-20,
        le=20,
        description="Added to the end token's logit: above 0 a small model that rambles past its ending stops there.",
    )
    stop: tuple[str, ...] = Field((), description="Strings that end a reply; they are not part of it.")


class EngineSettings(Settings):
    """Which engine writes the text, with which model, and how it is laid over the hardware."""

    kind: Literal["vllm", "openai", "echo"] = Field(
        "vllm", description="vllm: real, local. openai: an endpoint. echo: no model, for tests."
    )
    model: str = Field(
        "smollm2-135m-instruct", description="Model name or folder; resolved as `hornbook doctor` shows."
    )
    max_model_len: int = Field(2048, ge=16, description="Longest prompt plus reply, in tokens.")
    replicas: int | None = runtime(
        None,
        ge=1,
        description="Engine copies (data parallel); default: one per tensor_parallel GPUs, one on a CPU-only cluster.",
    )
    tensor_parallel: int = runtime(1, ge=1, description="GPUs per replica.")
    max_num_seqs: int = runtime(64, ge=1, description="Requests answered at the same time in one replica.")
    compile: bool | None = runtime(
        None,
        description="torch.compile in vLLM; default: yes on GPU, no on CPU (a compiled CPU start costs a minute more).",
    )
    max_num_batched_tokens: int | None = runtime(
        None,
        ge=16,
        description="Tokens, of prompts read and replies written, in one step of vLLM; more reads prompts faster and makes "
        "those who write wait. Default: vLLM's own on a GPU; on a CPU 2048 or max_model_len, whichever is more, and never "
        "less than max_model_len: prompts are read whole there.",
    )
    prefix_caching: bool = runtime(
        True,
        description="Keep what was computed for a prompt and reuse it for prompts that begin with the same tokens (few-shot "
        "examples, a rule for an audience), in whole blocks of kv_block_tokens.",
    )
    kv_block_tokens: int | None = runtime(
        None,
        ge=16,
        multiple_of=16,
        description="Tokens per block of the KV cache, the unit that prefix caching shares: prompts that share fewer share "
        "nothing. Default: 32 on a CPU, the least that it takes (vLLM's own 128 is longer than most beginnings); vLLM's own on "
        "GPUs.",
    )
    prefix_order: bool = runtime(
        True,
        description="Submit the prompts of one call in the order of their texts, so that those with the same beginning "
        "follow each other and meet in the cache before it is overwritten.",
    )
    speculation: Literal["none", "ngram", "suffix"] = runtime(
        "none",
        description="Guess several tokens at once and let the model check them: the same distribution of texts, other "
        "samples. ngram guesses what followed the last words before; suffix also what followed them in earlier replies "
        "(needs the package arctic-inference). Pays where replies repeat their prompt and the batch is small. vLLM then takes "
        "no sampling.min_p and no end_bias (an error), and no custom logits processors: openings to avoid are ignored.",
    )
    speculative_tokens: int = runtime(4, ge=1, le=32, description="Most tokens to guess at once, with speculation.")
    gpu_memory_utilization: float = runtime(0.9, gt=0, le=1, description="Share of GPU memory that vLLM may take.")
    cpu_kv_cache_gib: int = runtime(1, ge=1, description="KV cache on a CPU engine, GiB.")
    max_restarts: int = runtime(
        16, ge=0, description="Restarts of one replica before the stage fails; one prompt that kills takes up to four."
    )
    base_url: str = runtime("", description="openai: the endpoint's URL, ending in /v1.")
    api_key_env: str = runtime("OPENAI_API_KEY", description="openai: the environment variable that holds the key.")
    requests_per_minute: int = runtime(
        0, ge=0, description="openai: rate limit of all replicas together, retries included; 0 is none."
    )
    timeout_seconds: float = runtime(120.0, gt=0, description="openai: longest wait for one attempt at a reply.")
    outage_seconds: float = runtime(
        300.0,
        ge=0,
        description="openai: an endpoint that is down or refuses for load is asked again for so long; then the stage stops.",
    )
    max_total_tokens: int = runtime(
        0,
        ge=0,
        description="openai: tokens, prompt and reply, that one run may take with these engine settings, all stages and "
        "replicas together; 0 is no limit. When they are spent the stage stops.",
    )
    price_per_million_prompt_tokens: float = runtime(
        0.0, ge=0, description="openai: what a million prompt tokens cost, in your currency."
    )
    price_per_million_completion_tokens: float = runtime(
        0.0, ge=0, description="openai: what a million tokens of replies cost, in the same currency."
    )
    max_money: float = runtime(
        0.0,
        ge=0,
        description="openai: what one run may spend with these engine settings at the two prices above, all stages and "
        "replicas together; 0 is no limit. When it is spent the stage stops; the same command goes on where it stood.",
    )
    echo_tokens_per_second: float = runtime(
        0.0, ge=0, description="echo: pretend to write this fast per request; 0 is at once."
    )
    echo_dies_on: str = runtime("", description="echo: a prompt with this text kills the engine (fault injection).")
    request_log: str = runtime(
        "", description="Append one line per request taken and done to this file (proof of what was redone)."
    )

    @model_validator(mode="after")
    def _money_needs_prices(self) -> EngineSettings:
        if self.max_money and not (self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens):
            raise ValueError(
                "max_money counts nothing without price_per_million_prompt_tokens and price_per_million_completion_tokens"
            )
        return self


def engines_of(settings: Any) -> dict[str, EngineSettings]:
    """Return every engine that a stage's settings name, by settings field; of several writers, field and number.

    Where `engines` names several writers, they stand in for `engine`.
    """
    found: dict[str, EngineSettings] = {}
    for name, value in vars(settings).items():
        if isinstance(value, EngineSettings):
            found[name] = value
        elif isinstance(value, tuple):
            entries = [getattr(entry, "engine", None) for entry in value]
            found |= {
                f"{name}.{number}": entry for number, entry in enumerate(entries) if isinstance(entry, EngineSettings)
            }
    if "engines.0" in found:
        found.pop("engine", None)
    return found


@dataclass(frozen=True)
class Request:
    """One prompt. `seed` makes its sampling its own.

    `choices` restricts the reply to one of a few strings, each a single token of the model, one token long in all.
    `tag` names the row (say `stories/17`) in the request log and in errors.
    `schema`, a JSON Schema as JSON text, makes the reply a JSON value that satisfies it, unless it is cut (`length`).
    `avoid` makes openings of the reply less likely: pairs of an opening's first words and a bias, below 0, on the last of
    them where the reply begins with the words before it. ("Once", -3.0) and ("The little", -2.0): the second one touches
    "little" only after "The". A bias b divides the word's odds by exp(-b) at temperature 1. Engines that cannot (openai,
    echo) ignore it.
    """

    messages: Messages
    seed: int
    choices: tuple[str, ...] = ()
    tag: str = ""
    schema: str = ""
    avoid: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """What an engine made of a request; `finish_reason == "error"` carries `error`, and text only where that violates the
    request's schema.

    `choice_probabilities`, for requests with `choices`: the model's probability of each choice, summing to 1; empty
    where the engine cannot tell.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    choice_probabilities: dict[str, float] = field(default_factory=dict)


def failed(error: str, prompt_tokens: int = 0) -> Reply:
    """Return the reply of a request that failed, with the reason."""
    return Reply(text="", finish_reason="error", prompt_tokens=prompt_tokens, error=error)


class EngineDied(EngineError):
    """The engine's process is gone. Another start may help, unlike with its base class."""


class Engine(Protocol):
    """One running engine (one replica). All methods run in one asyncio loop."""

    async def start(self) -> None:
        """Load the model. Raises EngineError or ModelError with the cure."""

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """Answer `requests`, one reply each, in their order. Many calls run at once; the engine batches across them.

        Never raises for a bad request. Raises EngineDied when the engine must be started anew, EngineError when that
        would not help (a refused key, an endpoint that stays down, a spent budget, a schema that cannot be enforced).
        """

    async def close(self) -> None:
        """Free everything, child processes included. Safe to call twice, and on an engine that never started."""
