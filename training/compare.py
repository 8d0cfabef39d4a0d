"""Compares variants of a training run (other data, say), each trained with several seeds, by their held-out losses.

What varies is kept apart. Over seeds: each variant's mean with Student's 95% interval, and the difference to the first
variant, paired by seed (the same weights to begin with, the same order of rows), which takes out what a seed does to both.
Over held-out documents: a bootstrap of whole groups (packages), since documents of one group are alike; it says whether the
difference would hold on other documents of the kind, given these models. With three seeds the first interval is wide: t is 4.3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError
from hornbook.plan import derive_seed
from hornbook.settings import Settings, nearest
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult
from training.evaluate_loss import bits_per_byte

COMPARISON = "comparison.json"
RESAMPLES = 2000
LEVEL = 0.95

Sums = npt.NDArray[np.float64]
"""Nats and bytes, (models, groups, 2)."""


class CompareSettings(Settings):
    """Which models belong together."""

    variants: dict[str, tuple[str, ...]] = Field(
        ...,
        min_length=2,
        description="Name -> its models, the stages that trained them, the same seed in the same place; first the baseline.",
    )


class Compare(Stage):
    """Writes figures with intervals, and what the report draws."""

    kind = "compare"
    produces = "figures"
    Settings = CompareSettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "losses": Input("losses", many=True),
        "models": Input("model", many=True),
    }
    settings: CompareSettings

    def check(self) -> None:
        """Refuse variants that cannot be paired seed by seed. Raises RecipeError."""
        counts = {name: len(models) for name, models in self.settings.variants.items()}
        if len(set(counts.values())) > 1 or not all(counts.values()):
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise RecipeError(
                f"{self.name}.variants: as many models of each are needed, one for each seed; there are {said}",
                "train each variant with the same seeds",
            )
        named = [model for models in self.settings.variants.values() for model in models]
        if twice := sorted({model for model in named if named.count(model) > 1}):
            raise RecipeError(f"{self.name}.variants: {', '.join(twice)} stands there twice", "name each model once")

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return nothing planned: figures only."""
        return Expected(unit="figures")

    def run(self, context: StageContext) -> StageResult:
        """Add up the losses and compare. Raises RecipeError or DataError where a model or its losses are missing."""
        variants = self._models(context)
        corpora = gather(context.inputs["losses"], variants)
        found = {
            "unit": "bits per byte",
            "baseline": next(iter(variants)),
            "seeds": len(next(iter(variants.values()))),
            "corpora": {
                name: compared(sums, list(variants), derive_seed(context.seed, "compare", name))
                for name, sums in corpora.items()
            },
            "training": {
                name: [_training(model.manifest.metrics) for model in models] for name, models in variants.items()
            },
        }
        store, folder = context.artifact.store, context.artifact.folder
        store.write(f"{folder}/{COMPARISON}", json.dumps(found, indent=1).encode())
        return StageResult(metrics={"comparison": found}, files=[COMPARISON])

    def _models(self, context: StageContext) -> dict[str, list[Artifact]]:
        known = dict(zip(context.input_stages["models"], context.inputs["models"], strict=True))
        for models in self.settings.variants.values():
            for name in models:
                if name not in known:
                    raise RecipeError(
                        f"{self.name}.variants: {name!r} is no model among its inputs{nearest(name, list(known))}",
                        "name it as input `models`",
                    )
        return {name: [known[model] for model in models] for name, models in self.settings.variants.items()}


def gather(losses: Sequence[Artifact], variants: Mapping[str, Sequence[Artifact]]) -> dict[str, Sums]:
    """Return by corpus the sums of nats and bytes, (models, groups, 2); models in the variants' order.

    Raises:
        DataError: a model was not scored on the same documents as the others.
    """
    digests = [model.manifest.digest for models in variants.values() for model in models]
    sums: dict[str, dict[tuple[str, str], Sums]] = {}
    documents: dict[str, dict[str, int]] = {}
    for artifact in losses:
        for table in artifact.tables(columns=["model", "corpus", "group", "nats", "bytes"]):
            grouped = table.group_by(["model", "corpus", "group"]).aggregate(
                [("nats", "sum"), ("bytes", "sum"), ("bytes", "count")]
            )
            for row in grouped.to_pylist():
                own, place = sums.setdefault(row["corpus"], {}), (row["model"], row["group"])
                own[place] = own.get(place, np.zeros(2)) + np.array([row["nats_sum"], row["bytes_sum"]])
                counted = documents.setdefault(row["corpus"], {})
                counted[row["model"]] = counted.get(row["model"], 0) + row["bytes_count"]
    found = {}
    for corpus, own in sums.items():
        groups = sorted({group for _, group in own})
        counts = {digest: documents[corpus].get(digest, 0) for digest in digests}
        if len(set(counts.values())) > 1 or any((digest, group) not in own for digest in digests for group in groups):
            raise DataError(
                f"not all models were scored on the same documents of {corpus}: {sorted(counts.values())} documents",
                "name all models as input `models` of the stage that makes the losses",
            )
        found[corpus] = np.array([[own[digest, group] for group in groups] for digest in digests])
    if not found:
        raise DataError("there are no losses to compare", "look at the rejects of the stage that made them")
    return found


def compared(sums: Sums, variants: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the figures of one corpus: for each variant values, mean and intervals, and the difference to the first.

    Args:
        sums: nats and bytes, (variants x seeds, groups, 2).
        variants: their names; the first is the baseline.
        seed: of the bootstrap.
    """
    sums = sums.reshape(len(variants), -1, *sums.shape[1:])  # (variants, seeds, groups, 2)
    groups = sums.shape[2]
    values = np.array([[bits_per_byte(*one.sum(axis=0)) for one in seeds] for seeds in sums])
    drawn = np.random.default_rng(seed).integers(groups, size=(RESAMPLES, groups))
    weights = np.array([np.bincount(row, minlength=groups) for row in drawn], dtype=float)
    resampled = np.einsum("rg,vsgk->vsrk", weights, sums)
    means = (resampled[..., 0] / np.log(2) / resampled[..., 1]).mean(axis=1)  # (variants, resamples)
    by_group = (sums[..., 0] / np.log(2) / sums[..., 1]).mean(axis=1)  # (variants, groups)
    found = {}
    for number, name in enumerate(variants):
        figures: dict[str, Any] = {"values": _rounded(values[number]), **student(values[number])}
        if number:
            difference = values[number] - values[0]
            low, high = np.quantile(means[number] - means[0], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
            figures["difference"] = {"values": _rounded(difference), **student(difference)}
            figures["over_groups"] = {
                "low": round(float(low), 5),
                "high": round(float(high), 5),
                "better": int((by_group[number] < by_group[0]).sum()),
                "groups": groups,
            }
        found[name] = figures
    return {"variants": found, "groups": groups, "bytes": int(sums[0, 0, :, 1].sum())}


def student(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """Return the mean with Student's 95% interval (none of a single value)."""
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"mean": round(mean, 5), "low": None, "high": None}
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return {"mean": round(mean, 5), "low": round(mean - half, 5), "high": round(mean + half, 5)}


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    return [round(float(value), 5) for value in values]


def _training(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model was trained on: steps, tokens, its last loss, and how often it read each source."""
    shares = [share for share in metrics.get("mixture") or [] if isinstance(share, Mapping)]
    epochs: dict[str, float] = {}
    for share in shares:
        epochs[share["source"]] = round(epochs.get(share["source"], 0.0) + share["epochs"], 3)
    return {
        **{name: metrics[name] for name in ("steps", "tokens", "loss", "parameters") if name in metrics},
        "epochs": epochs,
    }
