"""The model card of an exported model: what it was trained on, stage by stage, source by source, with licences and proof."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hornbook.artifact import Artifact
from hornbook.corpus_sample import UNKNOWN, CorpusSample
from hornbook.errors import StoreError
from hornbook.models import licence_of, short_name

SAMPLED = 2_000
"""Documents of each corpus whose licences are looked at."""
FIGURES = ("steps", "tokens", "parameters", "loss", "validation", "bits_per_byte")


@dataclass(frozen=True)
class SourceOfTokens:
    """A row of the card's table: what a training stage took from a corpus."""

    phase: str
    source: str
    tokens: int
    epochs: float
    licences: str
    """Of the documents, as they say; of generated ones, the models that wrote them."""


def model_card(source: Artifact, stage: str, licence: str, proof: Mapping[str, Any], gguf: Mapping[str, Any]) -> str:
    """Return a README.md: what the model is, how to use it, what it was trained on, and what was proved of it.

    Args:
        source: the model's artifact.
        stage: that exports it.
        licence: its own.
        proof: of the folder, as `training.proof.Closeness` has it.
        gguf: by type, each with its proof or with `left_out`, the reason.
    """
    manifest = source.manifest
    lines = [
        "---", f"license: {licence}", "library_name: transformers", "pipeline_tag: text-generation", "tags: [hornbook]", "---",
        "", f"# {manifest.stage}", "",
        "A small language model trained with hornbook. Loads with `AutoModelForCausalLM.from_pretrained` and in vLLM, no",
        "remote code. Small models repeat themselves and make things up; do not rely on what they say.", "",
    ]  # fmt: skip
    trained = list(_training(source))
    if trained:
        lines += ["## Trained on", ""]
    for artifact in reversed(trained):
        made = artifact.manifest
        preset = f", preset {made.settings['preset']}" if made.settings.get("preset") else ""
        steps, tokens = made.metrics.get("steps", 0), made.metrics.get("tokens", 0)
        lines += [f"`{made.stage}` ({made.kind}{preset}): {steps:,} steps, {tokens:,} tokens.", ""]
        if rows := sources_of(artifact):
            lines += [
                "| phase | source | tokens | epochs | licences of the text, models that wrote it |",
                "|---|---|---|---|---|",
            ]
            lines += [
                f"| {row.phase} | {row.source} | {row.tokens:,} | {row.epochs:.2f} | {row.licences} |" for row in rows
            ]
            lines += [""]
    lines += ["## Made from", "", *_lineage(source, 0), ""]
    lines += ["## Proof", "", *_proof_lines(proof, gguf), ""]
    figures = {name: manifest.metrics[name] for name in FIGURES if name in manifest.metrics}
    lines += [
        "## Figures",
        "",
        "```json",
        json.dumps(figures, indent=1),
        "```",
        "",
        f"Exported by stage `{stage}`.",
        "",
    ]
    return "\n".join(lines)


def sources_of(artifact: Artifact) -> list[SourceOfTokens]:
    """Return what a training stage took from each source in each phase."""
    metrics = artifact.manifest.metrics
    shares = metrics.get("mixture") or []
    tokens_a_row = metrics.get("tokens", 0) / max(sum(share["sequences"] for share in shares), 1)
    licences = dict(_licences_of_sources(artifact))
    return [
        SourceOfTokens(
            share["phase"],
            share["source"],
            int(share.get("tokens") or round(share["sequences"] * tokens_a_row)),
            float(share["epochs"]),
            licences.get(share["source"], UNKNOWN),
        )
        for share in shares
    ]


def _licences_of_sources(artifact: Artifact) -> Iterator[tuple[str, str]]:
    from training.packed import describe

    for packed in _parents(artifact, "tokens"):
        try:
            name = describe(packed).source
        except StoreError:
            continue
        yield name, ", ".join(_licences(packed)) or UNKNOWN


def _licences(packed: Artifact) -> list[str]:
    """Return the licences that the documents of a packed corpus name, and the models that wrote the others."""
    found: dict[str, None] = {}
    for documents in _parents(packed, "documents"):
        if documents.manifest.produces != "documents":
            continue
        sample = CorpusSample(documents, most=SAMPLED)
        found |= dict.fromkeys(name for name, _ in sample.licences.most_common(8))
        found |= dict.fromkeys(f"{short_name(model)} ({licence_of(model)})" for model in sample.models)
    return list(found)


def _parents(artifact: Artifact, role: str) -> Iterator[Artifact]:
    """Yield the inputs in a role that are still as they were."""
    for reference in artifact.manifest.inputs.get(role, ()):
        parent = Artifact(artifact.store, reference.folder)
        if parent.complete and parent.manifest.digest == reference.digest:
            yield parent


def _training(artifact: Artifact) -> Iterator[Artifact]:
    """Yield the training stages behind a model, the last one first."""
    while True:
        if "tokens" in artifact.manifest.inputs:
            yield artifact
        before: Sequence[Artifact] = list(_parents(artifact, "model"))
        if not before:
            return
        artifact = before[0]


def _proof_lines(proof: Mapping[str, Any], gguf: Mapping[str, Any]) -> list[str]:
    lines = [
        f"The folder's log-probabilities differ from the trained model's by {proof['largest']:.1e} nats at most (allowed: "
        f"{proof['allowed']:.0e}).", "",
    ]  # fmt: skip
    for name, found in gguf.items():
        if "left_out" in found:
            lines.append(f"- GGUF {name}: not made: {found['left_out']}")
        else:
            lines.append(
                f"- `{found['file']}`: read back, its predictions diverge by {found['divergence']:.1e} nats per token (allowed: "
                f"{found['allowed']:.0e}); the likeliest token is the same at {100 * found['agreement']:.1f}% of the positions."
            )  # fmt: skip
    return lines


def _lineage(artifact: Artifact, depth: int) -> list[str]:
    manifest = artifact.manifest
    rows = int(manifest.counts.get("rows", 0))
    models = f", with {', '.join(map(short_name, manifest.models))}" if manifest.models else ""
    held = f", {rows:,} rows" if rows else ""
    lines = [f"{'  ' * depth}- `{manifest.stage}` ({manifest.kind}{held}{models}), digest {manifest.digest[:16]}"]
    for references in manifest.inputs.values():
        for reference in references:
            lines += _lineage(Artifact(artifact.store, reference.folder), depth + 1)
    return lines
