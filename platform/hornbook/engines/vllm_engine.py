"""The real engine: vLLM's AsyncLLM, on a GPU or on the CPU, with continuous batching across all calls under way."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hornbook import models
from hornbook.engines.child_stderr import ChildStderr
from hornbook.engines.foreseen import speculation_problem
from hornbook.engines.interface import (
    EngineDied,
    EngineSettings,
    FinishReason,
    Messages,
    Reply,
    Request,
    Sampling,
    failed,
)
from hornbook.engines.lifeline import OWNER_VARIABLE
from hornbook.engines.openings import RULES, Rule, opening_rules
from hornbook.engines.request_log import RequestLog
from hornbook.engines.schema import parse_schema, violation
from hornbook.errors import EngineError

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_GIB = 1024**3
_TOKENS_IN_A_CPU_STEP = 2048
_CPU_BLOCK_TOKENS = 32
"""With prompts in prefix order 1.16 times the tokens/s of vLLM's 128 in plan order (benchmarks/engine_settings.py)."""
_PROCESSOR = "hornbook.engines.openings_processor:AvoidOpenings"
_REMEMBERED_OPENINGS = 4096


class VLLMEngine:
    """One vLLM engine; its model runs in child processes that end with this one (see lifeline.py)."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._log = RequestLog(settings.request_log)
        self._engine: AsyncLLM | None = None
        self._tokenizer: Any = None
        self._numbers = itertools.count()
        self._openings: dict[tuple[tuple[str, float], ...], list[Rule]] = {}
        self._schemas: set[str] = set()
        self._stderr = ChildStderr()

    async def start(self) -> None:
        """Load the model: about 20 s on a CPU. Raises EngineError with vLLM's own reason."""
        folder = models.resolve(self.settings.model).path
        set_environment(self.settings)
        _take_normal_priority()
        with self._stderr.captured():
            try:
                from vllm import AsyncEngineArgs
                from vllm.usage.usage_lib import UsageContext
                from vllm.v1.engine.async_llm import AsyncLLM

                arguments = AsyncEngineArgs(**engine_arguments(self.settings, str(folder)))
                config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
                runner = "V2" if config.use_v2_model_runner else ""
                if config.speculative_config is None:
                    config.model_config.logits_processors = [f"{_PROCESSOR}{runner}"]
                self._engine = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
            except EngineError:
                raise
            except Exception as error:
                raise EngineError(
                    f"vLLM does not start with model {self.settings.model!r}: {self._stderr.reason() or error}",
                    "lower the engine's max_model_len, max_num_seqs or memory settings, or name a model that vLLM serves",
                ) from error
        self._tokenizer = self._engine.get_tokenizer()

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """Answer `requests`; a prompt that leaves no room for a reply in `max_model_len` fails alone.

        Raises EngineError for a JSON Schema that cannot be enforced, and for sampling that speculation cannot do, before any
        of them is sent.
        """
        self._check_sampling(sampling)
        for request in requests:
            if request.schema and request.schema not in self._schemas:
                await asyncio.to_thread(check_enforceable, request.schema, request.tag)
                self._schemas.add(request.schema)
        prompts = await asyncio.to_thread(self._tokenize, requests)
        order = list(range(len(requests)))
        if self.settings.prefix_order:
            order.sort(key=lambda n: [] if isinstance(tokens := prompts[n], Reply) else tokens)
        # A task begins in the order of its making, so this is the order in which vLLM gets them.
        replies = await asyncio.gather(*(self._answer(requests[n], prompts[n], sampling) for n in order))
        return [reply for _, reply in sorted(zip(order, replies, strict=True), key=lambda numbered: numbered[0])]

    async def close(self) -> None:
        """Stop the engine core and wait for it."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            if engine.output_handler is not None:  # Else it takes the end of the engine core for a crash and says so.
                engine.output_handler.cancel()
            await asyncio.to_thread(engine.shutdown, 10)
        self._stderr.close()
        self._log.close()

    def _tokenize(self, requests: Sequence[Request]) -> list[list[int] | Reply]:
        """Return each prompt's token ids: the model's chat template, or the plain contents for a model without one.

        A chat that the template refuses (a system turn, say, or two turns of one role) gets its failure instead.
        """
        if not self._tokenizer.chat_template:
            plain = ["\n\n".join(message["content"] for message in request.messages) for request in requests]
            return list(self._tokenizer(plain)["input_ids"])
        texts = [self._in_template(request.messages) for request in requests]
        good = [text for text in texts if isinstance(text, str)]
        tokens = iter(self._tokenizer(good, add_special_tokens=False)["input_ids"] if good else [])
        return [next(tokens) if isinstance(text, str) else text for text in texts]

    def _in_template(self, messages: Messages) -> str | Reply:
        import jinja2

        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        except jinja2.TemplateError as error:
            return failed(f"the chat template of {self.settings.model!r} refuses the conversation: {error}")

    def _check_sampling(self, sampling: Sampling) -> None:
        if problem := speculation_problem(self.settings, sampling):
            raise EngineError(*problem)

    async def _answer(self, request: Request, prompt: list[int] | Reply, sampling: Sampling) -> Reply:
        if isinstance(prompt, Reply):
            return prompt
        room = self.settings.max_model_len - len(prompt)
        if room < 1:
            return failed(
                f"prompt has {len(prompt)} tokens, max_model_len is {self.settings.max_model_len}", len(prompt)
            )
        try:
            parameters, choice_tokens = self._parameters(request, sampling, room)
        except ValueError as error:
            return failed(str(error), len(prompt))
        self._log.taken([request])
        reply = await self._run(prompt, parameters, choice_tokens)
        self._log.done([request])
        if request.schema and reply.finish_reason == "stop" and (wrong := violation(reply.text, request.schema)):
            return replace(reply, finish_reason="error", error=wrong)
        return reply

    def _parameters(self, request: Request, sampling: Sampling, room: int) -> tuple[SamplingParams, dict[int, str]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        if request.choices:
            tokens = {self._single_token(choice): choice for choice in request.choices}
            return SamplingParams(
                temperature=0.0,
                max_tokens=1,
                allowed_token_ids=list(tokens),
                logprob_token_ids=list(tokens),
                logprobs=len(tokens),
                output_kind=RequestOutputKind.FINAL_ONLY,
            ), tokens
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=min(sampling.max_tokens, room),
            min_tokens=min(sampling.min_tokens, sampling.max_tokens, room),
            logit_bias={self._tokenizer.eos_token_id: sampling.end_bias} if sampling.end_bias else None,
            stop=list(sampling.stop) or None,
            seed=request.seed % 2**63,
            structured_outputs=StructuredOutputsParams(json=request.schema) if request.schema else None,
            extra_args={RULES: self._rules(request.avoid)} if request.avoid else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        ), {}

    def _rules(self, avoid: tuple[tuple[str, float], ...]) -> list[Rule]:
        if avoid not in self._openings:
            if len(self._openings) >= _REMEMBERED_OPENINGS:
                self._openings.clear()
            self._openings[avoid] = opening_rules(avoid, self._encode, self._tokenizer.decode)
        return self._openings[avoid]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _single_token(self, choice: str) -> int:
        tokens = self._encode(choice)
        if len(tokens) != 1:
            raise ValueError(f"choice {choice!r} is {len(tokens)} tokens of this model, not one")
        return tokens[0]

    async def _run(self, prompt: list[int], parameters: SamplingParams, choice_tokens: dict[int, str]) -> Reply:
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._engine is None:
            raise EngineDied("the vLLM engine is not running")
        try:
            number = str(next(self._numbers))
            outputs = [output async for output in self._engine.generate(tokens_input(prompt), parameters, number)]
        except EngineDeadError as error:
            raise EngineDied(f"the vLLM engine died: {self._stderr.reason() or error}") from error
        except Exception as error:
            if self._engine is None or self._engine.errored:
                raise EngineDied(f"the vLLM engine died: {self._stderr.reason() or error}") from error
            return failed(f"{type(error).__name__}: {error}", len(prompt))
        completion = outputs[-1].outputs[0]
        written = len(completion.token_ids)
        if choice_tokens:
            return _chosen(completion, choice_tokens, len(prompt))
        if completion.finish_reason not in ("stop", "length"):
            return Reply("", "error", len(prompt), written, error=f"finish reason {completion.finish_reason!r}")
        ended: FinishReason = "stop" if completion.finish_reason == "stop" else "length"
        return Reply(completion.text, ended, len(prompt), written)


def _chosen(completion: Any, choice_tokens: dict[int, str], prompt_tokens: int) -> Reply:
    """Turn the first token's log probabilities into probabilities of the choices, whatever else the model
    considered."""
    position = completion.logprobs[0]
    scores = {choice: position[token].logprob for token, choice in choice_tokens.items()}
    highest = max(scores.values())
    weights = {choice: math.exp(score - highest) for choice, score in scores.items()}
    probabilities = {choice: weight / sum(weights.values()) for choice, weight in weights.items()}
    likeliest = max(probabilities, key=lambda choice: probabilities[choice])
    return Reply(likeliest, "stop", prompt_tokens, 1, choice_probabilities=probabilities)


def check_enforceable(schema: str, tag: str = "") -> None:
    """Raise EngineError where vLLM's grammar compiler (xgrammar) cannot enforce a JSON Schema; `tag` names the request."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.structured_output import backend_xgrammar

    parsed = parse_schema(schema)
    refused = backend_xgrammar.has_xgrammar_unsupported_json_features
    try:
        if isinstance(parsed, dict) and refused(parsed):
            raise ValueError(f"xgrammar does not enforce what stands in {_culprit(parsed, refused)}")
        backend_xgrammar.validate_xgrammar_grammar(
            SamplingParams(structured_outputs=StructuredOutputsParams(json=schema))
        )
    except Exception as error:
        raise EngineError(
            f"the JSON Schema of {tag or 'a request'} cannot be enforced: {str(error).strip()}",
            "say it in simpler keywords and check the rest after generation; unknown to it are among others multipleOf, "
            "uniqueItems, contains, allOf of several schemas, and pattern together with a length",
        ) from None


def _culprit(schema: Any, refused: Callable[[dict[str, Any]], bool]) -> str:
    """Return the innermost part of a schema that is refused, shortened."""
    children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for child in children:
        if isinstance(child, dict | list) and refused({"properties": child} if isinstance(child, list) else child):
            return _culprit(child, refused)
    return json.dumps(schema)[:200]


def _speculation(settings: EngineSettings) -> dict[str, Any]:
    """Return vLLM's speculative_config. Raises EngineError where suffix speculation lacks its package."""
    if settings.speculation == "suffix":
        if importlib.util.find_spec("arctic_inference") is None:
            raise EngineError(
                "speculation: suffix needs the package arctic-inference, which is not installed",
                "pip install arctic-inference==0.1.1 where a C++ compiler and CMake are, or set engine.speculation: ngram",
            )
        return {"method": "suffix", "num_speculative_tokens": settings.speculative_tokens}
    return {
        "method": "ngram",
        "num_speculative_tokens": settings.speculative_tokens,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    }


def set_environment(settings: EngineSettings) -> None:
    """Set what vLLM reads from the environment only, for this process and its children, before vLLM is imported."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # Where ChildStderr finds the reason of a death.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # Its start-up warnings tell a user nothing to act on.
    os.environ.update(VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ[OWNER_VARIABLE] = str(os.getpid())
    # Ray sets OMP_NUM_THREADS to the CPUs an actor reserves, which is a matter of scheduling here, not of speed.
    os.environ.pop("OMP_NUM_THREADS", None)
    if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // settings.tensor_parallel)
        shares = [cores[rank * share : (rank + 1) * share] for rank in range(settings.tensor_parallel)]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, part)) for part in shares)


def _take_normal_priority() -> None:
    """Undo the niceness of 15 that Ray gives its workers: the engine's children inherit it and starve beside others.

    Only root may; elsewhere Ray's own setting RAY_worker_niceness=0 does it.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def engine_arguments(settings: EngineSettings, folder: str) -> dict[str, Any]:
    """Return vLLM's engine arguments for the model in `folder` on this machine."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": folder,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": not (settings.compile if settings.compile is not None else not on_cpu),
        "enable_prefix_caching": settings.prefix_caching,
        "worker_extension_cls": "hornbook.engines.lifeline.Lifeline",
        "disable_log_stats": True,
        "trust_remote_code": False,
        # One backend by name: with vLLM's "auto" the first schema decides it, and a later one that it cannot enforce is
        # not enforced at all. Without free white space, which small models write without end.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "seed": 0,
    }
    if on_cpu:
        arguments["kv_cache_memory_bytes"] = settings.cpu_kv_cache_gib * _GIB
        # vLLM 0.32 rewinds a seeded request's random generator after each chunk of its prompt but the last, which
        # torch's CPU generator cannot do («CPU Generator does not use offset»): the engine would die. So no chunks.
        arguments["enable_chunked_prefill"] = False
        wanted = settings.max_num_batched_tokens or _TOKENS_IN_A_CPU_STEP
        arguments["max_num_batched_tokens"] = max(settings.max_model_len, wanted)
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
        if settings.max_num_batched_tokens:
            arguments["max_num_batched_tokens"] = settings.max_num_batched_tokens
    if block := settings.kv_block_tokens or (_CPU_BLOCK_TOKENS if on_cpu else None):
        arguments["block_size"] = block
    if settings.speculation != "none":
        arguments["speculative_config"] = _speculation(settings)
    if settings.tensor_parallel > 1:
        arguments["distributed_executor_backend"] = "mp"
    return arguments
