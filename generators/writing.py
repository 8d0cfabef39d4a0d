"""Writes planned rows: renders their prompts, asks the engines, and turns replies into documents or rejects.

One part maker serves every kind. All rows of a part are under way together, and what they ask at the same time goes to an
engine as one call.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from generators.asking import Together, Writer, made_with, one_failure
from generators.checks import Refused
from generators.diversity import cell_of
from generators.kind_faults import NOT_ITS_FAULT, describe, kind_error, usable_parsed, usable_prompt
from generators.prompted import Parsed, Prompt, PromptedStage
from generators.replies import ROLE, Call, EarlierReplies, KnownReplies, replies_bytes
from generators.steering import Steering
from hornbook.artifact import Artifact
from hornbook.documents import (
    Document,
    MadeBy,
    Reject,
    canonical_json,
    document_id,
    documents_table,
    generated_key,
    rejects_table,
)
from hornbook.engines.interface import Messages, Reply, Request, Sampling
from hornbook.engines.usage import usage_counts
from hornbook.errors import HornbookError
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed


@dataclass
class WrittenRow:
    """What became of a planned unit: a document or a refusal, and every call on the way, in the order they were made."""

    unit: int
    prompt: Prompt | None = None
    answered: dict[int, tuple[Call, MadeBy]] = field(default_factory=dict)
    document: Document | None = None
    refused: Refused | None = None

    @property
    def calls(self) -> list[Call]:
        """The calls, with their replies."""
        return [self.answered[number][0] for number in sorted(self.answered)]

    @property
    def asked(self) -> list[MadeBy]:
        """How each call was made."""
        return [self.answered[number][1] for number in sorted(self.answered)]


class PromptMaker(PartMaker):
    """Makes a range of units: planned rows, each `samples` times."""

    num_cpus = 0.1

    def __init__(
        self,
        stage: PromptedStage,
        writers: Mapping[str, Writer],
        inputs: Mapping[str, Sequence[Artifact]],
        earlier: EarlierReplies,
        wave: int,
    ) -> None:
        self.stage, self.writers, self.inputs, self.earlier, self.wave = stage, writers, inputs, earlier, wave
        self._under_way: dict[PartRange, list[WrittenRow]] = {}
        self.kind, self.in_flight = stage.kind, stage.settings.parts_in_flight
        self.replicas = max((len(writer.handle) for writer in writers.values()), default=1)

    def setup(self) -> None:
        """Open the stage's inputs."""
        with kind_error(self.stage, "open()"):
            self.stage.open(self.inputs)

    async def make(self, part: PartRange) -> PartContent:
        """Write a range of units; what an earlier artifact has replies for is not asked again."""
        known = await asyncio.to_thread(self.earlier.load, part)
        together = Together()
        rows = self._under_way[part] = [WrittenRow(unit) for unit in range(part.start, part.stop)]
        try:
            ended = await asyncio.gather(*(self._write(row, known, together) for row in rows), return_exceptions=True)
            if failure := next(filter(None, ended), None):
                await asyncio.to_thread(self._save)
                raise failure
            refused = [(row.refused.reason, row.refused.detail) if row.refused else None for row in rows]
            if failure := one_failure(part, refused):
                await asyncio.to_thread(self._save)
                raise failure
        finally:
            del self._under_way[part]
        return self._content(rows)

    def _save(self) -> None:
        """Save what was answered of all parts under way here: the one that failed takes the others with it."""
        for part, rows in list(self._under_way.items()):
            self.earlier.save(part, [call for row in rows for call in row.calls])

    async def _write(self, written: WrittenRow, known: KnownReplies, together: Together) -> None:
        try:
            prompt = written.prompt = self._prompt(written.unit // self.stage.settings.samples)
            asker = _Asker(self, written, known, together)
            parsed = await self._parsed(prompt, asker)
            written.document = self._document(written, prompt, parsed)
        except Refused as refused:
            written.refused = refused

    def _prompt(self, row: int) -> Prompt:
        try:
            return usable_prompt(self.stage.prompt(row))
        except (Refused, HornbookError, *NOT_ITS_FAULT):
            raise
        except BaseException as error:  # a user's kind may do anything: the row is a reject that says what
            raise Refused("prompt-failed", describe(error)) from error

    async def _parsed(self, prompt: Prompt, asker: _Asker) -> Parsed:
        try:
            parsed = usable_parsed(await self.stage.write(prompt, asker))
            self.stage.check_text(prompt, parsed.text)
        except (Refused, HornbookError, *NOT_ITS_FAULT):
            raise
        except BaseException as error:
            raise Refused("parse-failed", describe(error)) from error
        return parsed

    def _document(self, written: WrittenRow, prompt: Prompt, parsed: Parsed) -> Document:
        seeds = canonical_json(dict(prompt.seeds))
        meta = dict(parsed.meta)
        if self.stage.learns:
            meta["wave"] = self.wave
        asked = written.asked
        if len(asked) > 1:
            meta["calls"] = [
                {"model": made.model, "prompt": made.prompt, "completion_tokens": made.completion_tokens}
                for made in asked[1:]
            ]
        if asked:
            made_by, key = replace(asked[0], seeds=seeds), written.calls[0].key
        else:  # nothing was asked: it is made of its seeds and parents alone
            made_by = MadeBy("[]", seeds, "", "", "", 0, "stop", 0, 0)
            made_of = {"role": seeds, "content": "".join(key.hex() for key in prompt.parents)}
            key = generated_key([made_of], self.stage.kind, "", written.unit)
        return Document(
            id=document_id(written.unit),
            key=key,
            text=parsed.text,
            source=self.stage.kind,
            kind=self.stage.document_kind,
            parents=prompt.parents,
            made_by=made_by,
            meta=meta,
        )

    def _content(self, rows: Sequence[WrittenRow]) -> PartContent:
        documents = [row.document for row in rows if row.document is not None]
        rejects = [self._reject(row, row.refused) for row in rows if row.refused is not None]
        counts: Counter[str] = Counter()
        for row in rows:
            calls = row.calls
            counts["reused"] += bool(calls) and all(call.reused for call in calls)
            for call in calls:
                counts[f"finish_{call.reply.finish_reason}"] += 1
            if calls:
                counts[f"planned:{row.asked[0].model}"] += 1
        made = [call for row in rows for call in row.calls]
        asked = {name: writer.settings for name, writer in self.writers.items()}
        new = [(call.engine, call.reply) for call in made if not call.reused]
        return PartContent(
            documents_table(documents),
            rejects_table(rejects),
            files={ROLE: replies_bytes(made)} if made else {},
            counts={**counts, **usage_counts(asked, new)},
        )

    def _reject(self, row: WrittenRow, refused: Refused) -> Reject:
        unit = row.prompt.messages[-1]["content"] if row.prompt and row.prompt.messages else f"row {row.unit}"
        text = row.calls[-1].reply.text if row.calls else ""
        return Reject(row.unit, unit, refused.reason, refused.detail, text)


def sampling_seed(stage: PromptedStage, unit: int, call: int = 0) -> int:
    """Return the seed that a reply of a planned unit is sampled with; `call` counts the unit's requests."""
    parts = (stage.seed, stage.kind, "sampling", unit) + ((call,) if call else ())
    return derive_seed(*parts) % (1 << 31)


class _Asker:
    """`Ask` for one planned unit."""

    def __init__(self, maker: PromptMaker, written: WrittenRow, known: KnownReplies, together: Together) -> None:
        self.maker, self.written, self.known, self.together = maker, written, known, together
        self.made = 0

    async def __call__(
        self,
        messages: Messages,
        *,
        schema: str = "",
        choices: tuple[str, ...] = (),
        engine: str = "engine",
        sampling: Sampling | None = None,
    ) -> Reply:
        maker, written = self.maker, self.written
        number, self.made = self.made, self.made + 1  # before anything is waited for: a kind may ask several at once
        steering = Steering()
        if engine == "engine":
            row = written.unit // maker.stage.settings.samples
            engine, _, own = maker.stage.writers[maker.stage.writer_of(row)]
            steering = self._steering()
            sampling = steering.sampling(sampling or own)
            messages = steering.messages(messages)
        writer = maker.writers[engine]
        sampling = sampling or maker.stage.settings.sampling
        sampled = made_with(sampling, schema, choices, steering.avoid)
        seed = sampling_seed(maker.stage, written.unit, number)
        key = generated_key(messages, writer.revision, sampled, seed)
        reply, reused = self.known.find(key)
        if reply is None:
            tag = f"{maker.stage.kind}/{written.unit}"
            request = Request(messages, seed, choices, tag, schema=schema, avoid=steering.avoid)
            reply = await self.together.ask(writer, request, sampling)
        made_by = MadeBy(
            prompt=canonical_json(list(messages)),
            seeds="",
            model=writer.model,
            revision=writer.revision,
            sampling=sampled,
            row_seed=seed,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )
        written.answered[number] = (Call(written.unit, key, reply, reused, engine), made_by)
        return reply

    def _steering(self) -> Steering:
        stage, prompt = self.maker.stage, self.written.prompt
        seeds = prompt.seeds if prompt is not None else {}
        steering = Steering.of(stage.decisions, cell_of(stage.cells, seeds))
        if steering.rest and stage.settings.accepted is not None:
            raise Refused("cell-rested", "its cell gave too much of the same; other rows are asked for instead")
        return steering
