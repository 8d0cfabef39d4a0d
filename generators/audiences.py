"""Whom a textbook is written for and how it is built: the rules that the kinds of textbook share."""

from __future__ import annotations

from typing import Literal

Audience = Literal["young children", "high-school students", "college students", "curious adults"]
Format = Literal["steps", "question", "scene", "misconception", "dialogue"]
Difficulty = Literal["introduction", "consolidation", "challenge"]

AUDIENCES: dict[Audience, str] = {
    "young children": "Use everyday words and short sentences, and compare new things with things at home.",
    "high-school students": "Define each new term when it first appears.",
    "college students": "Be precise, and say why things are so, not only that they are.",
    "curious adults": "Use a friendly tone and an example from daily life.",
}
FORMATS: dict[Format, str] = {
    "steps": "Explain it step by step.",
    "question": "Begin with a question that a student may ask, then answer it.",
    "scene": "Begin with a small everyday scene, then explain what is behind it.",
    "misconception": "Begin with something that many people believe wrongly about it, and put it right.",
    "dialogue": "Write it as a talk between a teacher and a student who asks good questions.",
}
DIFFICULTIES: dict[Difficulty, str] = {
    "introduction": "Assume that the reader has never heard of it.",
    "consolidation": "Assume that the reader knows the basics, and go one step further.",
    "challenge": "Assume that the reader knows it well, and treat a difficult case.",
}
