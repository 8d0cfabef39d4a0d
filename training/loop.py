"""The training loop: pretraining and tuning are this one function over different batches.

It runs in one plain process, under torchrun, or in a Ray Train worker; it knows of none of them. Everything that a step
does follows from the step's number, so a resumed run repeats an uninterrupted one bit for bit on the same world.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from hornbook.errors import TrainingError
from training import checkpoint as checkpoints
from training.archive import Archive
from training.flops import flops_per_token, peak_of_world
from training.loader import DIGEST_BITS, Batch, Loader
from training.model import LanguageModel
from training.optimizer import Average, Guard, make_optimizer
from training.pace import Pace
from training.parallel import World, begin_microbatch, compute_dtype, parallelize
from training.preference_model import PreferenceModel, reference_log_probabilities
from training.profiling import Profile
from training.record import Record
from training.samples import Prompts, Samples
from training.saver import Saver, check_best_by, wants_validation
from training.schedule import LearningRates
from training.settings import LoopSettings
from training.shards import TokenSource
from training.sigterm import Sigterm
from training.trunk import Trunk
from training.validation import Validation


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    stopped: bool
    """Asked to stop before the last step; the checkpoint is saved."""


def train(
    settings: LoopSettings,
    model: LanguageModel,
    loader: Loader,
    validation: Mapping[str, TokenSource],
    folder: Path,
    world: World,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[dict[str, Any]], None] = lambda row: None,
    archive: Archive | None = None,
    bytes_per_token: Mapping[str, float] | None = None,
    trunk: Trunk | None = None,
    save_now: Callable[[], bool] = lambda: False,
    prompts: Prompts | None = None,
) -> Outcome:
    """Train a model over all steps of the loader's mixture, from the latest checkpoint if there is one.

    Args:
        model: plain, freshly initialised or loaded; it is sharded in place.
        validation: held-out rows by source; validated by name.
        folder: for `checkpoints/` and `metrics.jsonl` (written by rank 0); one that all ranks see, or with an archive
            any folder of this node.
        seed: of dropout.
        stop: asked once a step on rank 0; true: finish the step, save, return. SIGTERM to any rank does the same.
        progress: given each metrics row on every rank, with what the model wrote, if it did, as `samples`.
        archive: where checkpoints and metrics last, if not in `folder`.
        bytes_per_token: of the held-out text, by source; those of a known one are validated in bits per byte, too.
        trunk: where to start from if there is no checkpoint yet: another run's.
        save_now: asked like `stop`; true: save after this step and wait until it is written, then go on.
        prompts: what the model goes on from, every `settings.sample_every` steps.

    Raises:
        TrainingError: `settings.patience` steps left out in a row, an unwritable checkpoint, or a checkpoint of other
            data or of another model.
    """
    architecture = model_fingerprint(model)
    flops = flops_per_token(model, settings.sequence_length)
    on_gpu = world.device.type == "cuda"
    compiled = on_gpu if settings.compile is None else settings.compile
    parallelize(model, world, settings, compiled)
    optimizer = make_optimizer(model, settings)
    average, guard = Average(model, settings.average), Guard(settings.leap)
    data = loader.fingerprint()
    references = None
    if isinstance(model, PreferenceModel):  # before a checkpoint is loaded: the model is still its former self
        sources = dict(zip(loader.mixture.sources, loader.sources, strict=True))
        loader.references = reference_log_probabilities(model, sources, settings.microbatch, world)
        references = reference_log_probabilities(model, validation, settings.microbatch, world)
    check_best_by(settings, validation)
    first, of_data = 0, data
    found = checkpoints.latest_of_all(folder / "checkpoints", archive)
    if found is None and trunk is not None:
        found, of_data = trunk.checkpoint_of_all(folder), trunk.data
    if found is not None:
        checkpoints.load(found, model, optimizer, average, of_data, architecture)
        first = found.step
        guard.restore(found.extra)
    dist.barrier()
    record = Record(settings.record, folder, first, archive, world)
    samples = Samples(prompts, settings, seed) if prompts else None
    profile = Profile(settings.profile if world.rank == 0 else None, folder, world.device)
    held_out = Validation(validation, settings.validation_rows, settings.microbatch)
    mixture, steps = loader.mixture, loader.mixture.steps
    learning_rate = LearningRates(settings.peak_rate, settings.schedule, mixture.legs())
    saver = Saver(
        folder / "checkpoints", settings, data, architecture, mixture.plan(), archive, trunk.name if trunk else ""
    )
    sigterm = Sigterm()
    batches = loader.batches(first, steps, world.rank, world.size)
    done, stopped = first, False
    pace = Pace(steps, flops, peak_of_world(world, compute_dtype(settings.precision, world.device)), world.device)
    try:
        for batch in batches:
            profile.begin(batch.step + 1)
            rate = learning_rate(batch.step)
            wishes = (stop(), save_now()) if world.rank == 0 else (False, False)
            counts, agreed = _agree(batch, (*wishes, sigterm.received, *saver.state()), world)
            saver.advance(running=agreed[3], failed=agreed[4])
            stopping, hurry = bool(agreed[0] or agreed[2]), bool(agreed[1])
            loss, norm, figures = _gradients(model, batch, counts.targets, settings.clip, world, seed)
            if guard.passes(loss, norm):
                optimizer.set_rate(rate)
                optimizer.step()
                average.update(model)
            optimizer.zero_grad()
            done = batch.step + 1
            profile.end(done)
            row: dict[str, Any] = {"step": done, "phase": batch.phase, "loss": loss, "lr": rate, "grad_norm": norm}
            row |= figures
            if done % settings.validate_every == 0 or done == steps or wants_validation(settings, done):
                with average.in_place(model):
                    row["validation"] = held_out(model, world, references)
                row |= {f"validation_{figure}": values for figure, values in held_out.figures.items()}
                if not isinstance(model, PreferenceModel):
                    row |= _readable(row["validation"], bytes_per_token or {})
            row |= pace.step(done, counts.tokens, batches.waited)
            row["source_tokens"] = dict(zip(mixture.sources, counts.of_sources, strict=True))
            row |= {"batch_digest": f"{counts.digest:012x}", "skipped": guard.skipped} | saver.figures()
            if samples and (done % settings.sample_every == 0 or done == steps):
                with average.in_place(model):
                    row["samples"] = samples(model, world, done)
            record.step(row)
            progress(row)
            if guard.in_a_row >= settings.patience:
                saver.finish()
                how = "not finite" if not math.isfinite(loss + norm) else f"over {settings.leap} times the usual"
                raise TrainingError(
                    f"step {done}: the loss or its gradient was {how} {guard.in_a_row} steps in a row",
                    "lower learning_rate, lengthen schedule.warmup_steps, or set precision to fp32; then run again, or branch "
                    "off from a checkpoint with `hornbook fork RUN@STEP --set loop.learning_rate=...`",
                )
            stopped = stopping and done < steps
            if done % settings.checkpoint_every == 0 or done == steps or stopped or hurry:
                obstacle, last = record.keep(), done == steps or stopped
                losses = row["validation"] if done == steps or wants_validation(settings, done) else {}
                saver.save(done, model, optimizer, average, guard.counters(), losses, last, hurry, obstacle)
            if stopped:
                break
    finally:
        batches.close()
        saver.close()
        sigterm.close()
        profile.close()
        record.close()
    return Outcome(done, stopped)


def _readable(losses: Mapping[str, float], bytes_per_token: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return losses in nats per token as `perplexity`, and as `bits_per_byte`, which does not depend on the tokenizer."""
    found = {"perplexity": {name: math.exp(min(loss, 700.0)) for name, loss in losses.items()}}
    known = {
        name: loss / math.log(2) / bytes_per_token[name] for name, loss in losses.items() if name in bytes_per_token
    }
    return found | ({"bits_per_byte": known} if known else {})


COMPUTED_WITH = (
    "hidden_act", "activation_function", "num_attention_heads", "num_heads", "num_key_value_heads", "head_dim",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "attention_layers", "window_size", "sliding_window", "layer_types",
)  # fmt: skip
"""Fields of a configuration by which weights of the same shapes compute something else. Not its positions: a branch may
lengthen the context."""


def model_fingerprint(model: LanguageModel) -> str:
    """Return a hash of what a checkpoint must fit: names and shapes of all parameters, what is computed with them, the mask."""
    config = model.model.config
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    fields = [(name, getattr(config, name)) for name in COMPUTED_WITH if getattr(config, name, None) is not None]
    passes = [getattr(block, "times", 1) for block in model.blocks]
    return hashlib.sha256(repr((config.model_type, shapes, fields, passes, model.document_mask)).encode()).hexdigest()


class _Counts(NamedTuple):
    """What the ranks' shares of a global batch sum up to."""

    targets: int
    tokens: int
    digest: int
    of_sources: list[int]


def _agree(batch: Batch, wishes: Sequence[int], world: World) -> tuple[_Counts, list[int]]:
    """Sum what each rank knows of the global batch, and what it wants, in one reduction: (counts, wishes)."""
    own = [batch.targets, batch.tokens, batch.digest, *wishes, *batch.source_tokens]
    sums = torch.tensor(own, dtype=torch.int64)
    dist.all_reduce(sums)  # on the CPU: a GPU would have to finish the step before
    targets, tokens, digest, *more = sums.tolist()
    agreed, of_sources = more[: len(wishes)], more[len(wishes) :]
    return _Counts(targets, tokens, digest % (1 << DIGEST_BITS), of_sources), agreed


def _gradients(
    model: LanguageModel,
    batch: Batch,
    targets: int,
    clip: float,
    world: World,
    seed: int,
) -> tuple[float, float, dict[str, float]]:
    """Accumulate the gradients of the mean loss over the global batch, clipped.

    Returns the loss, the norm before clipping, and the means of what the model sums up beside its loss.
    """
    torch.manual_seed(hash((seed, batch.step, world.rank)) % (1 << 63))  # integers hash alike in every process
    names = tuple(getattr(model, "figures", ()))
    total = torch.zeros(1 + len(names), device=world.device)
    last = len(batch.microbatches) - 1
    for number, tensors in enumerate(batch.microbatches):
        begin_microbatch(model, number == last)  # one reduction a step
        sums = model(*(tensor.to(world.device, non_blocking=True) for tensor in tensors)).view(-1) / max(targets, 1)
        (sums[0] * world.size).backward()  # FSDP takes the mean over ranks, the loss is a sum over them
        total += sums.detach()
    dist.all_reduce(total)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    loss, *figures, length = torch.cat([total, norm.to(total).view(1)]).tolist()  # the one wait for a GPU in a step
    return loss, length, dict(zip(names, figures, strict=True))
