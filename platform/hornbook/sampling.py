"""`hornbook sample`: stream text from a model folder with transformers; chat where the tokenizer has a template.

`hornbook chat` stands on the same functions.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.errors import HornbookError, ModelError
from hornbook.models import resolve
from hornbook.store import Store


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, in float32, with its tokenizer, and where it came from."""

    folder: Path
    tokenizer: Any
    network: Any

    @property
    def context(self) -> int:
        """Positions that it has."""
        return int(self.network.config.max_position_embeddings)


def load_model(store: Store, model: str) -> LoadedModel:
    """Load a model given as a folder, a model's name, an artifact, or RUN/STAGE.

    Raises:
        ModelError: it does not resolve or does not load.
    """
    folder = model_folder(store, model)
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # of a long prompt we speak ourselves
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} does not load: {error}", "`hornbook doctor` lists models; a model folder has a config.json"
        ) from error
    return LoadedModel(folder, tokenizer, network)


def stream(
    store: Store,
    model: str,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    plain: bool,
) -> Iterator[str]:
    """Yield pieces of text as the model writes them; without a prompt, for each line of standard input.

    Args:
        model: a folder, a model's name, an artifact, or RUN/STAGE.
        plain: go on from the text even where the model has a chat template.

    Raises:
        ModelError: the model does not resolve or does not load.
    """
    import torch

    loaded = load_model(store, model)
    tokenizer, network = loaded.tokenizer, loaded.network
    chat = bool(tokenizer.chat_template) and not plain
    torch.manual_seed(seed)
    conversation: list[dict[str, str]] = []
    for line in [prompt] if prompt is not None else read_lines("you> " if chat else "text> "):
        if chat:
            conversation.append({"role": "user", "content": line})
            inputs = chat_inputs(tokenizer, conversation, loaded.context, max_tokens)
        else:
            inputs = tokenizer(line, return_tensors="pt")
            yield line
        answer = ""
        for piece in generate(network, tokenizer, inputs, max_tokens, temperature, top_p):
            answer += piece
            yield piece
        yield "\n"
        if chat:
            conversation.append({"role": "assistant", "content": answer})


def model_folder(store: Store, model: str) -> Path:
    """Return the local folder of a model given as a folder, a model's name, an artifact, or RUN/STAGE."""
    if Path(model).is_dir():
        return Path(model)
    from hornbook.inspection import find_artifact

    try:
        artifact = find_artifact(store, model)
    except HornbookError as unknown:
        try:
            return resolve(model).path
        except ModelError as error:
            if model.startswith(("/", "~", ".")) or "://" in model:
                raise
            raise ModelError(f"{model!r} is no model here: {unknown.message}; {error.message}", error.cure) from None
    if artifact.manifest.produces != "model":
        raise ModelError(f"{model} is {artifact.manifest.produces}, not a model", "`hornbook ls` lists the artifacts")
    return artifact.local_folder("model")


def read_lines(prompt: str) -> Iterator[str]:
    """Yield the lines of standard input that say something; a person is asked for each."""
    while True:
        if sys.stdin.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def chat_inputs(tokenizer: Any, conversation: list[dict[str, str]], context: int, max_tokens: int) -> Any:
    """Return a conversation as tokens; its oldest turns are dropped, for good, until an answer has room in the context.

    Room is `max_tokens`, but no more than half of the context, so that a small model does not forget everything at once. A
    system prompt stays.
    """
    first = int(conversation[0]["role"] == "system")
    while True:
        inputs = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        room = context - inputs["input_ids"].shape[1]
        if len(conversation) == first + 1 or room >= min(max_tokens, context // 2):
            return inputs
        del conversation[first : first + 2]  # a question and its answer


def generate(
    network: Any, tokenizer: Any, inputs: Any, max_tokens: int, temperature: float, top_p: float
) -> Iterator[str]:
    """Yield pieces of what a model writes after `inputs`, while it writes in a thread of its own.

    Raises:
        ModelError: the prompt leaves no room, or the model refuses these settings.
    """
    from transformers import TextIteratorStreamer

    room = int(network.config.max_position_embeddings) - inputs["input_ids"].shape[1]
    if room < 1:
        raise ModelError(
            f"the prompt fills the model's context of {network.config.max_position_embeddings} tokens", "shorten it"
        )
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    options: dict[str, Any] = {
        "max_new_tokens": min(max_tokens, room),
        "streamer": streamer,
        "do_sample": temperature > 0,
    }
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p}
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    failures: list[Exception] = []

    def write() -> None:
        try:
            network.generate(**inputs, **options)
        except Exception as error:  # raised again below: only this thread knows, and the reader waits for the streamer
            failures.append(error)
            streamer.end()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    for failure in failures:
        if isinstance(failure, ValueError):
            raise ModelError(
                f"the model cannot write with these settings: {failure}", "see `hornbook sample --help`"
            ) from failure
        raise failure
