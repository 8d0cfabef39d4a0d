"""Writes a trained model as a plain Hugging Face folder: config, generation config, weights, tokenizer and template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hornbook.errors import ModelError
from training.chat_templates import end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_hf_folder(model: PreTrainedModel, folder: Path, tokenizer_folder: Path) -> None:
    """Save a plain (not sharded) model and its tokenizer so that `from_pretrained` and vLLM load them as they are.

    The generation config stops at the end-of-text token and, where the tokenizer's chat template marks answers, at what ends one.

    Raises:
        ModelError: the tokenizer has no end-of-text token, or more entries than the model has.
    """
    import transformers
    from transformers import AutoTokenizer, GenerationConfig

    transformers.utils.logging.disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer in {tokenizer_folder} has no end-of-text token", "train one with the tokenizer stage"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"the tokenizer in {tokenizer_folder} has {len(tokenizer)} entries, the model {model.config.vocab_size}",
            "use the tokenizer that the model was trained with",
        )
    stops = [tokenizer.eos_token_id]
    end = end_of_turn(tokenizer)
    if end is not None and end not in stops:
        stops.append(end)
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=tokenizer.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
