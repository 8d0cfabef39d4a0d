"""Stands for llama.cpp's tools, which no package registry brings: they write real GGUF files of phi2 through the package gguf.

The converter refuses tokenizers that it does not know, as the real one does; the quantizer's Q8_0 damages the weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

CONVERTER = """
import json, sys
from pathlib import Path
import gguf
import numpy as np
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerFast


class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        raise NotImplementedError("BPE pre-tokenizer was not recognized - update get_vocab_base_pre()")


def main():
    folder, out = Path(sys.argv[1]), sys.argv[sys.argv.index("--outfile") + 1]
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "phi2")
    writer.add_tokenizer_pre(TextModel().get_vocab_base_pre(PreTrainedTokenizerFast.from_pretrained(folder)))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    width = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(width * config["rope_parameters"]["partial_rotary_factor"]))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI2, config["num_hidden_layers"])
    for name, values in load_file(folder / "model.safetensors").items():
        kind = np.float16 if values.ndim == 2 else np.float32
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), values.astype(kind))
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""
QUANTIZER = """
import sys
import gguf
import numpy as np

base, out, kind = sys.argv[1:]
reader, writer = gguf.GGUFReader(base), gguf.GGUFWriter(out, "phi2")
for name, field in reader.fields.items():
    if name.startswith("phi2."):
        writer.add_key_value(name, field.contents(), field.types[0])
for tensor in reader.tensors:
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    if tensor.data.ndim == 2 and kind != "Q8_0":
        writer.add_tensor(
            tensor.name, gguf.quantize(values, gguf.GGMLQuantizationType.Q4_0), raw_dtype=gguf.GGMLQuantizationType.Q4_0
        )
    else:
        writer.add_tensor(tensor.name, values * (7 if kind == "Q8_0" else 1))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


def install(folder: Path) -> Path:
    """Write the two tools into a folder, laid out as llama.cpp built in place."""
    (folder / "build" / "bin").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    quantizer = folder / "build" / "bin" / "llama-quantize"
    quantizer.write_text(f"#!{sys.executable}\n{QUANTIZER}")
    quantizer.chmod(0o755)
    return folder
