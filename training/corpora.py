"""A training stage's packed inputs as a mixture's corpora, and the document behind each of their tokens."""

from __future__ import annotations

from pathlib import Path

from hornbook.artifact import Artifact
from hornbook.errors import DataError
from hornbook.stage import StageContext, TokenLocation
from training.job import Corpus, Job
from training.packed import describe, shard_index, template_hash, tokenizer_hash


def open_corpora(context: StageContext, tokenizer: Path, kind: str) -> list[Corpus]:
    """Return the packed inputs of a stage as a mixture's corpora.

    Raises:
        DataError: one was packed with another tokenizer or chat template, is of the other kind, or two have the same name.
    """
    corpora: list[Corpus] = []
    wanted = tokenizer_hash(tokenizer)
    for artifact, stage in zip(context.inputs["tokens"], context.input_stages["tokens"], strict=True):
        description = describe(artifact)
        if description.tokenizer != wanted:
            raise DataError(f"{stage} was packed with another tokenizer than the model's", "pack it with the same one")
        if description.template and description.template != template_hash(tokenizer):
            raise DataError(
                f"{stage} was packed with another chat template than the model's", "pack it with the model's own"
            )
        if description.kind != kind:
            raise DataError(f"{stage} holds {description.kind}, this stage trains on {kind}", f"set its form to {kind}")
        if description.source in [corpus.name for corpus in corpora]:
            raise DataError(f"two inputs are called {description.source!r}", "give one of the pack stages a `source`")
        corpora.append(Corpus(description.source, artifact, shard_index(artifact), _bytes_per_token(artifact, kind)))
    return corpora


def _bytes_per_token(artifact: Artifact, kind: str) -> float | None:
    """Return how many bytes of held-out text a token stands for, end-of-text tokens counted; None where nobody counted."""
    counts = artifact.manifest.counts
    size, tokens = counts.get("validation_bytes", 0), counts.get("validation_tokens", 0)
    return size / tokens if kind == "text" and size and tokens else None


def locate_token(job: Job, step: int, row: int, position: int) -> TokenLocation:
    """Return the document behind the input token at `position` of row `row` of optimizer step `step` (1 is the first).

    Raises:
        DataError: there is no such step, row or position.
    """
    rows, length = job.settings.global_batch, job.settings.sequence_length
    if job.trunk and step <= job.trunk.step:
        rows = job.trunk.plan["global_batch"]
    if not (1 <= step <= job.steps and 0 <= row < rows and 0 <= position < length):
        raise DataError(
            f"there is no position {position} in row {row} of step {step}",
            f"steps go from 1 to {job.steps}, rows from 0 to {rows - 1}, positions from 0 to {length - 1}",
        )
    sources = job.open("train")
    mixture = job.mixture(sources)
    draws = mixture.batch(step - 1)
    name = mixture.sources[int(draws.source[row])]
    try:
        found = sources[name].locate(int(draws.sequence[row]), position)
    except IndexError as error:
        raise DataError(f"step {step}, {error}", "give a smaller position") from error
    return TokenLocation(name, found.key, found.offset)
