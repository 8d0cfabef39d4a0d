"""The settings that every kind of generated text has: how many rows, who writes them, what is checked and steered."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from generators.checks import CheckSettings
from generators.diversity import DiversitySettings
from hornbook.engines.interface import EngineSettings, Sampling
from hornbook.settings import Settings, runtime


class WeightedEngine(Settings):
    """One of several models that write a corpus together."""

    engine: EngineSettings = Field(..., description="The engine; what it leaves out comes from the recipe's `engine`.")
    weight: float = Field(1.0, gt=0, description="Its share of the rows, in proportion to the others'.")
    sampling: Sampling | None = Field(None, description="How it samples; default: as the stage does.")


class PromptSettings(Settings):
    """Settings of every kind of generated text."""

    rows: int | None = Field(
        None, ge=1, description="Planned rows, one prompt each; rejected ones are not made up for. Or say `accepted`."
    )
    accepted: int | None = Field(
        None, ge=1, description="Rows wanted after all checks: plans on, wave by wave, until there are so many."
    )
    over_generation: float = runtime(
        4.0,
        ge=1,
        description="At most so many rows are planned for each of `accepted`; then the stage stops and says why.",
    )
    samples: int = Field(1, ge=1, le=1024, description="Replies asked for each prompt; each is a row of its own.")
    wave_rows: int = Field(
        1024,
        ge=1,
        description="Rows of a wave, where later rows depend on earlier ones: with `accepted`, diversity steering, or a "
        "kind that learns.",
    )
    part_rows: int = Field(16, ge=1, description="Planned rows per part: what is lost at most when a worker dies.")
    engine: EngineSettings = Field(EngineSettings(), description="The engine that writes.")
    engines: tuple[WeightedEngine, ...] = Field((), description="Several models in place of `engine`, with weights.")
    sampling: Sampling = Field(Sampling(), description="How it samples.")
    truncated: Literal["reject", "trim", "keep"] = Field(
        "reject", description="A reply cut at max_tokens: reject it, trim it to its last whole sentence, or keep it."
    )
    checks: CheckSettings = Field(CheckSettings(), description="What is looked for in each text.")
    diversity: DiversitySettings = Field(
        DiversitySettings(), description="What is watched over all texts, and steered."
    )
    parts_in_flight: int = runtime(
        12, ge=1, description="Parts asked at once of each replica of the engine; keeps its batch full."
    )

    @model_validator(mode="after")
    def _a_number_of_rows(self) -> PromptSettings:
        if self.rows is None and self.accepted is None:
            raise ValueError("say how many: rows (planned) or accepted (left after all checks)")
        return self

    @property
    def planned_rows(self) -> int:
        """The most prompts that the plan may reach."""
        limits = [self.rows, self.accepted and -int(-self.accepted * self.over_generation // self.samples)]
        return min(limit for limit in limits if limit is not None)
