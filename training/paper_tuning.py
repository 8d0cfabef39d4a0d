"""How papers tuned their models: what an `sft` stage takes over by `paper`, where its recipe leaves a setting open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from hornbook.settings import Settings

Paper = Literal["phi-1", "phonelm", "phonelm-calls", "phi2-zh"]

PAPERS: Mapping[Paper, Mapping[str, Any]] = {
    "phi-1": {
        "steps": 6_000, "best_of": {"every": 1_000},
        "loop": {
            "learning_rate": 1e-4, "weight_decay": 0.01, "global_batch": 256,
            "schedule": {"kind": "linear", "warmup_steps": 50, "floor": 0.0},
        },
    },
    "phonelm": {"loop": {"learning_rate": 2e-5}},
    "phonelm-calls": {"lora": {"rank": 8, "alpha": 16}, "loop": {"learning_rate": 1.41e-5}},
    "phi2-zh": {
        "loop": {
            "learning_rate": 5e-5, "weight_decay": 0.1, "global_batch": 64,
            "schedule": {"kind": "linear", "warmup_steps": 1_000, "floor": 0.0},
        },
    },
}  # fmt: skip
"""phi-1 on CodeExercises (arXiv 2306.11644); PhoneLM's instructions and its calls (DroidCall's LoRA); Phi2-mini-Chinese's
program. What they do not say is the stage's default."""

S = TypeVar("S", bound=Settings)


def as_in_paper(settings: S, paper: Paper | None) -> S:
    """Return a tuning stage's settings with what its recipe leaves open, in `loop`, too, as a paper has it.

    A recipe that says `epochs` takes none of the paper's steps.
    """
    if paper is None:
        return settings
    theirs = dict(PAPERS[paper])
    if "epochs" in settings.model_fields_set:
        theirs.pop("steps", None)
    own = {name: getattr(settings, name) for name in settings.model_fields_set}
    loop = own.get("loop")
    ours = {name: getattr(loop, name) for name in loop.model_fields_set} if loop is not None else {}
    return type(settings).model_validate({**theirs, **own, "loop": {**theirs["loop"], **ours}})
