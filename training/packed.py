"""What a packed corpus is, as an artifact: how training opens what the pack stage wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hornbook.artifact import Artifact
from hornbook.errors import StoreError
from training.shards import SPLITS, Shard, ShardIndex, add_shards, token_dtype
from training.tokenizer import load_tokenizer

DESCRIPTION = "pack.json"


class PackDescription(BaseModel):
    """What all parts of a packed corpus share."""

    model_config = ConfigDict(extra="forbid")

    source: str
    """What the corpus is called in a mixture."""
    kind: str
    """`text`, `chat` or `preference`."""
    vocabulary: int
    eos: int
    tokenizer: str
    """Hash of the tokenizer it was made with."""
    template: str = ""
    """Hash of the chat template that conversations were rendered with; empty for plain text."""


def describe(artifact: Artifact) -> PackDescription:
    """Read a packed corpus's description. Raises StoreError if it is damaged."""
    try:
        return PackDescription.model_validate(artifact.store.read_json(f"{artifact.folder}/{DESCRIPTION}"))
    except ValueError as error:
        raise StoreError(
            f"{artifact.folder}/{DESCRIPTION} is damaged: {error}", "delete its folder; run again"
        ) from error


def shard_index(artifact: Artifact) -> ShardIndex:
    """Return the shards of a packed corpus in plan order, as its commit records name them."""
    description = describe(artifact)
    splits: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for part in artifact.parts:
        names = {entry.role: entry.name for entry in part.files}
        digests = {entry.role: entry.digest for entry in part.files}
        add_shards(splits, names, digests, names["data"], part.counts)
    return ShardIndex(token_dtype(description.vocabulary), description.vocabulary, description.eos, splits)


def template_hash(folder: Path) -> str:
    """Return a hash of a tokenizer folder's chat template."""
    return hashlib.sha256((load_tokenizer(folder).chat_template or "").encode()).hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """Return a hash of a tokenizer folder's vocabulary, merges and special tokens, whatever else lies beside them."""
    return hashlib.sha256(load_tokenizer(folder).backend_tokenizer.to_str().encode()).hexdigest()
