"""`hornbook serve`: vLLM's OpenAI server on a trained model's folder, with settings that fit the machine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hornbook.errors import ModelError

CPU_BLOCK_TOKENS = 32  # the least that vLLM takes on a CPU: prompts of small models are short
CPU_CACHE_GIB = 1
CPU_STEP_TOKENS = 2048


@dataclass(frozen=True)
class Server:
    """A server's command, and what it wants in the environment beside what is there."""

    command: tuple[str, ...]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        """Return what can be typed into a shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*words, shlex.join(self.command)])

    def replace_this_process(self) -> NoReturn:
        """Become the server. Raises ModelError where vLLM is not installed."""
        if importlib.util.find_spec("vllm") is None:
            raise ModelError(
                "vLLM is not installed here", "pip install 'hornbook[gpu]', or scripts/install-cpu on a CPU"
            )
        os.execvpe(self.command[0], list(self.command), {**os.environ, **self.environment})


def server(
    folder: Path, name: str, host: str, port: int, context: int | None, on_cpu: bool, more: Sequence[str] = ()
) -> Server:
    """Return the server of a model folder.

    Args:
        name: what clients call the model.
        context: longest conversation, in tokens; default: the model's own.
        on_cpu: whether there is no GPU.
        more: further options of vLLM's server; of two of the same name vLLM takes the last.

    Raises:
        ModelError: no model folder, or one with an architecture that vLLM has not.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is no model folder: {error}", "name a folder with a config.json") from None
    if config.get("model_type") == "gpt_neo":
        raise ModelError(f"it cannot be served: {unserved(config)}", "`hornbook chat` and `hornbook sample` run it")
    length = min(context or 1 << 30, int(config.get("max_position_embeddings", 2048)))
    options: dict[str, str] = {
        "served-model-name": name,
        "host": host,
        "port": str(port),
        "max-model-len": str(length),
        "generation-config": "auto",  # it names the tokens that end a turn
    }
    if unserved(config):
        options["model-impl"] = "transformers"  # slower than vLLM's own, and gated as the model is
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    flags = []
    if on_cpu:
        options |= {"dtype": "bfloat16", "block-size": str(CPU_BLOCK_TOKENS), "max-num-seqs": "16"}
        # Prompts whole: vLLM 0.32 dies of a seeded request whose prompt it reads in chunks on a CPU.
        options["max-num-batched-tokens"] = str(max(length, CPU_STEP_TOKENS))
        options["kv-cache-memory-bytes"] = str(CPU_CACHE_GIB << 30)
        flags = ["--enforce-eager", "--no-enable-chunked-prefill"]  # a compiled start costs a minute more
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", cores)
    # Not `vllm serve`: of vLLM's CPU build it finds no version, because that package has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += [word for option, value in options.items() for word in (f"--{option}", value)]
    return Server((*command, *flags, *more), environment)


def unserved(config: Mapping[str, Any]) -> str:
    """Return why vLLM's own code does not run a model of this configuration; empty where nothing is known against it."""
    if config.get("model_type") == "gpt_neo":
        return "vLLM has no GPT-Neo, which the tinystories presets are"
    activation = config.get("hidden_act", "silu")
    if config.get("model_type") == "llama" and activation != "silu":
        return f"vLLM's Llama gates with SiLU only, this one with {activation}, as the phonelm presets do"
    return ""


def served_name(model: str, folder: Path) -> str:
    """Return what clients call a model by default: the stage of RUN/STAGE, else the folder's own name."""
    last = model.rstrip("/").rpartition("/")[2]
    if last == "model":  # .../artifacts/export-1f2e/model
        last = folder.resolve().parent.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", last) or "model"


def has_gpu() -> bool:
    """Tell whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()
