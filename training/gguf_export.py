"""GGUF files of an exported model, through llama.cpp's own converter and quantizer where they are installed.

hornbook does not bring llama.cpp along. Where it is missing, or does not know the architecture, the reason is noted and the
export goes on without. Every file is read back and its predictions are compared with the model's: what strays further than
its type may is not kept. Reading back proves what the file says, not that an engine computes it rightly.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hornbook.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

GgufType = Literal["f16", "bf16", "q8_0", "q4_k_m", "q4_0"]
ALLOWED: Mapping[str, float] = {"f16": 1e-3, "bf16": 1e-2, "q8_0": 2e-2, "q4_k_m": 0.3, "q4_0": 0.5}
"""Largest mean divergence of predictions from the model's, nats per token; small models feel four bits more than large ones."""
CONVERTER, QUANTIZER = "convert_hf_to_gguf.py", "llama-quantize"
PLAIN = ("f16", "bf16")
READ_BY_NAME = ("phi2",)
"""Architectures that transformers does not read from GGUF, and whose tensors the converter leaves as they are."""


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's tools; None where one was not found."""

    converter: Path | None
    quantizer: Path | None

    def missing(self, kind: GgufType, searched: str) -> str:
        """Return what is missing for a type, empty if nothing is."""
        wanted = {CONVERTER: self.converter, **({} if kind in PLAIN else {QUANTIZER: self.quantizer})}
        absent = [name for name, path in wanted.items() if path is None]
        where = f"{searched} or on PATH" if searched else "on PATH; set llama_cpp to llama.cpp's folder"
        return f"there is no {' and no '.join(absent)} in {where}".replace("in on", "on") if absent else ""


def find_llama_cpp(folder: str) -> LlamaCpp:
    """Return the tools in llama.cpp's folder (built there or not), or on PATH."""

    def find(name: str) -> Path | None:
        places = [Path(folder).expanduser() / inside / name for inside in ("", "build/bin", "bin")] if folder else []
        found = next((str(path) for path in places if path.is_file()), None) or shutil.which(name)
        return Path(found).resolve() if found else None

    return LlamaCpp(find(CONVERTER), find(QUANTIZER))


def write_gguf(
    folder: Path,
    kinds: Sequence[GgufType],
    target: Path,
    llama_cpp: str,
    rows: Sequence[Sequence[int]],
    predictions: Sequence[torch.Tensor],
) -> dict[str, dict[str, Any]]:
    """Write a model folder as GGUF files into `target`, each proved by what it says.

    Args:
        llama_cpp: llama.cpp's folder; empty: its tools are on PATH.
        rows: of ids.
        predictions: the model's log-probabilities of them.

    Returns:
        By type the file's name and proof, or `left_out` with the reason.
    """
    tools = find_llama_cpp(llama_cpp)
    found: dict[str, dict[str, Any]] = {}
    converted = _Conversions(tools, folder, target)
    target.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        path = target / f"model-{kind}.gguf"
        try:
            if reason := tools.missing(kind, llama_cpp):
                raise ModelError(reason)
            base = converted(kind if kind in PLAIN else "f16")
            if kind not in PLAIN:
                _run([str(tools.quantizer), str(base), str(path), kind.upper()], QUANTIZER)
            found[kind] = {"file": path.name, "bytes": path.stat().st_size} | _prove(
                path, folder, kind, rows, predictions
            )
        except ModelError as error:
            path.unlink(missing_ok=True)
            found[kind] = {"left_out": error.message}
    if "f16" not in kinds:
        (target / "model-f16.gguf").unlink(missing_ok=True)
    return found


class _Conversions:
    """Callable: the converter's file of a type, made once; a model that it refused is not tried again."""

    def __init__(self, tools: LlamaCpp, folder: Path, target: Path) -> None:
        self._tools, self._folder, self._target = tools, folder, target
        self._refusal: ModelError | None = None

    def __call__(self, kind: str) -> Path:
        path = self._target / f"model-{kind}.gguf"
        if self._refusal is not None:
            raise self._refusal
        if not path.exists():
            try:
                _convert(self._tools, self._folder, kind, path)
            except ModelError as error:
                self._refusal = error
                raise
        return path


def _convert(tools: LlamaCpp, folder: Path, kind: str, path: Path) -> None:
    arguments = [str(tools.converter), str(folder), "--outfile", str(path), "--outtype", kind]
    _run([sys.executable, "-m", "training.gguf_converter", *arguments], CONVERTER)


def _run(command: Sequence[str], name: str) -> None:
    """Run a tool of llama.cpp's. Raises ModelError with the last line of what it said."""
    roots = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise ModelError(f"{name} does not run: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ModelError(f"{name} refuses the model: {said}")


def _prove(
    path: Path, folder: Path, kind: GgufType, rows: Sequence[Sequence[int]], predictions: Sequence[torch.Tensor]
) -> dict[str, Any]:
    from training.proof import closeness, log_probabilities

    found = closeness(predictions, log_probabilities(read_back(path, folder), rows))
    if not found.divergence <= ALLOWED[kind]:
        raise ModelError(
            f"read back, its predictions diverge by {found.divergence:.3g} nats per token, {ALLOWED[kind]:g} are allowed"
        )
    return found.record(ALLOWED[kind])


def read_back(path: Path, folder: Path) -> PreTrainedModel:
    """Return the model that a GGUF file describes, its weights dequantized, float32.

    Args:
        folder: the Hugging Face folder that it was made of.

    Raises:
        ModelError: nothing here reads its architecture, or it says something else than the folder.
    """
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    reader = gguf.GGUFReader(path)
    architecture = str(reader.get_field("general.architecture").contents())  # type: ignore[union-attr]
    if architecture in READ_BY_NAME:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        _fill(model, reader, architecture)
        return model
    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(
            f"its architecture {architecture} cannot be read back, so nothing proves it: {error}"
        ) from None
    return model


def _fill(model: PreTrainedModel, reader: Any, architecture: str) -> None:
    """Put a file's tensors in place of a model's weights, by llama.cpp's table of names."""
    import gguf
    import torch

    for name, (wanted, found) in _settings(model.config, reader, architecture):
        if found is None or abs(float(found) - float(wanted)) > 1e-9:
            raise ModelError(f"it has {name} {found}, the model {wanted}")
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = tensors.pop(str(names.get_name(name, try_suffixes=(".weight", ".bias"))), None)
            if tensor is None:
                raise ModelError(f"it lacks {name}")
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            parameter.copy_(torch.from_numpy(values.copy()).view_as(parameter))
    if tensors:
        raise ModelError(f"it has {', '.join(tensors)} beside the model's weights")


def _settings(config: Any, reader: Any, architecture: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield what decides how a phi2 computes: the model's and the file's value by name."""
    width = config.hidden_size // config.num_attention_heads
    wanted = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads or config.num_attention_heads,
        "attention.layer_norm_epsilon": config.layer_norm_eps,
        "rope.dimension_count": int(width * config.rope_parameters["partial_rotary_factor"]),
    }
    for name, value in wanted.items():
        field = reader.get_field(f"{architecture}.{name}")
        yield name, (value, None if field is None else field.contents())
