"""Runs llama.cpp's own converter on a model whose tokenizer hornbook trained: `python -m training.gguf_converter SCRIPT ...`.

The converter knows tokenizers by a hash of what they make of one text, so it refuses every vocabulary of one's own. How a text
is cut before the merges is all that it wants to know by that, and hornbook's tokenizers cut as GPT-2's does: that is what
is said for them. A tokenizer that cuts otherwise is refused as before.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def run(script: Path, arguments: list[str]) -> None:
    """Run the converter (convert_hf_to_gguf.py of a llama.cpp release) with command line arguments."""
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", script)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{script} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Until 2026 the model classes lay in the script, since then in a package beside it.
    owner = getattr(module, "TextModel", None) or importlib.import_module("conversion.base").TextModel
    recognised = owner.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(recognised(self, tokenizer))
        except NotImplementedError:
            if cuts_as_gpt2(tokenizer):
                return "gpt-2"
            raise

    owner.get_vocab_base_pre = get_vocab_base_pre
    module.main()


def cuts_as_gpt2(tokenizer: Any) -> bool:
    """Tell whether a transformers tokenizer cuts text as GPT-2's does before it merges bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = json.loads(backend.to_str()) if backend is not None else {}
    cutter = found.get("pre_tokenizer") or {}
    return (
        found.get("normalizer") is None
        and cutter.get("type") == "ByteLevel"
        and cutter.get("use_regex", True)
        and not cutter.get("add_prefix_space")
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve(), sys.argv[2:])
