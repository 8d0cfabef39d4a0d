"""One training run as a value: all that a worker needs, wherever it is started (Ray, torchrun, a plain process)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hornbook.artifact import Artifact
from hornbook.errors import RecipeError, TrainingError
from training.archive import Archive
from training.best import BestOfSettings
from training.best_fit import OverLong
from training.low_rank import LoraSettings, LowRankModel
from training.mixture import Mixture, PhaseSettings
from training.settings import LoopSettings
from training.shards import Rows, ShardIndex, Split, TokenSource
from training.stretches import WhenDry
from training.trunk import Trunk, branch_off

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from training.checkpoint import Checkpoint
    from training.loop import Outcome
    from training.parallel import World
    from training.samples import Prompts


class Folder(Protocol):
    """Something that gives a local folder on the node where it is asked (an artifact)."""

    def local_folder(self, inside: str = "") -> Path:
        """Return the local path, or that of a folder inside it."""
        ...


@dataclass(frozen=True)
class Corpus:
    """A packed corpus: what a mixture calls it, where its shards lie, and which; bytes of held-out text that a token is."""

    name: str
    folder: Folder
    index: ShardIndex
    bytes_per_token: float | None = None


@dataclass(frozen=True)
class Preference:
    """How a model learns from pairs; see `training.preference_model`."""

    beta: float
    length_normalised: bool


@dataclass(frozen=True)
class Job:
    """A training run.

    Attributes:
        settings: of the loop.
        corpora: packed with one tokenizer.
        rows: how training rows are cut.
        phases: the mixture.
        max_epochs: over each corpus.
        seed: of order and dropout.
        artifact: what is made; checkpoints and metrics lie in it.
        preset: the model's preset, or the fields of a `config.json`, if it starts from nothing; `overrides` are fields of its
            configuration, or of the positions of the model that it starts from.
        start: has the folder `model` to start from, else.
        grow: let that model grow to the preset's size.
        preference: the settings of preference tuning, if rows are pairs.
        lora: train adapters of this size only.
        tokenizer: where it lies, and in which folder there; read where the loop's settings ask for samples.
        only_preflight: train a few steps, say what the run will take, and leave nothing.
        trunk: the checkpoint of another run that this one branches off from; the phases follow it.
        epoch_caps, when_dry: of the mixture; see there.
        over_long: what becomes of documents longer than a row; see `training.shards.TokenSource`.
        best_of: which weights it leaves, if not the last.
    """

    settings: LoopSettings
    corpora: Sequence[Corpus]
    rows: Rows
    phases: Sequence[PhaseSettings]
    max_epochs: float
    seed: int
    artifact: Artifact
    preset: str | Mapping[str, Any] = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    start: Folder | None = None
    grow: bool = False
    preference: Preference | None = None
    lora: LoraSettings | None = None
    tokenizer: tuple[Folder, str] | None = None
    only_preflight: bool = False
    trunk: Trunk | None = None
    epoch_caps: Mapping[str, float] = field(default_factory=dict)
    when_dry: WhenDry = "refuse"
    over_long: OverLong = "split"
    best_of: BestOfSettings | None = None

    @cached_property
    def steps(self) -> int:
        """Optimizer steps in all, those before a branch included, as the mixture plans them."""
        return self.mixture(self.open("train")).steps

    @property
    def document_mask(self) -> bool:
        """Whether rows hold documents that must not see each other; conversations never may."""
        if self.rows == "best-fit":
            return self.settings.document_mask or any(source.numbered for source in self.open("train").values())
        return self.settings.document_mask and self.rows == "windows"

    @property
    def archive(self) -> Archive | None:
        """Where checkpoints and metrics last if the store is no disk that all workers see."""
        store = self.artifact.store
        return None if store.local else Archive(store, self.artifact.folder)

    @property
    def folder(self) -> Path:
        """Where this node writes checkpoints and metrics: the artifact's own folder, or the archive's cache."""
        if self.archive:
            return self.archive.cache
        return self.artifact.local_folder()

    def open(self, split: Split) -> dict[str, TokenSource]:
        """Open the corpora, on the node that reads them."""
        length = self.settings.sequence_length
        return {
            corpus.name: TokenSource(
                corpus.folder.local_folder(), split, length, self.rows, corpus.index, self.over_long
            )
            for corpus in self.corpora
        }

    def mixture(self, sources: Mapping[str, TokenSource]) -> Mixture:
        """Return the plan of the batches. Raises RecipeError as Mixture does, and DataError as `branch_off`."""
        sizes = {name: len(source) for name, source in sources.items()}
        own = (sizes, self.phases, self.settings.global_batch, self.max_epochs, self.seed)
        more: dict[str, Any] = {
            "row_tokens": {name: source.row_tokens for name, source in sources.items()},
            "epoch_caps": self.epoch_caps,
            "when_dry": self.when_dry,
        }
        return Mixture(*own, **more) if self.trunk is None else branch_off(self.trunk, sources, *own, **more)

    def model(self) -> PreTrainedModel:
        """Return the model to train, plain, float32, on the CPU.

        Raises:
            RecipeError: a model override that its configuration does not have, fewer words than the corpora's tokenizer
                has, or rows longer than its context.
        """
        import torch
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM

        transformers.utils.logging.disable_progress_bar()
        from training.expansion import expanded
        from training.layer_sharing import folded, share_blocks
        from training.long_context import with_context
        from training.presets import CONTEXT_FIELDS, build_model, find_preset

        if self.start is None:
            model = build_model(self._config(), self.seed)
            if (repeats := find_preset(self.preset).repeats) > 1:
                model = share_blocks(model, repeats)
        else:
            folder = self.start.local_folder("model")
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            context = {name: value for name, value in self.overrides.items() if name in CONTEXT_FIELDS}
            if context and not self.grow:
                config = with_context(config, context)
            model = AutoModelForCausalLM.from_pretrained(
                folder, config=config, trust_remote_code=False, dtype=torch.float32
            )
            words = self.overrides.get("vocab_size", 0)
            if words > model.config.vocab_size:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    model.resize_token_embeddings(words)  # new ones near the mean of the old ones
            model = expanded(model, self._config(), self.seed) if self.grow else folded(model)
        self._require_fit(model.config)
        return model

    def _require_fit(self, config: Any) -> None:
        words = max(corpus.index.vocabulary for corpus in self.corpora)
        if words > config.vocab_size:
            raise RecipeError(
                f"the corpora hold ids up to {words - 1}, the model has {config.vocab_size} words",
                "leave model.vocab_size out: it is the tokenizer's then",
            )
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and self.settings.sequence_length > positions:
            raise RecipeError(
                f"rows of {self.settings.sequence_length} tokens do not fit the model's context of {positions}",
                "lower loop.sequence_length, or set model.max_position_embeddings",
            )

    def _config(self) -> PreTrainedConfig:
        from training.presets import check_fields, model_config

        check_fields(model_config(self.preset), self.overrides)
        eos = self.corpora[0].index.eos  # what a preset has are ids of another tokenizer, and may lie beyond this one's
        return model_config(
            self.preset, **{"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": None, **self.overrides}
        )

    def train(
        self,
        world: World,
        stop: Callable[[], bool],
        progress: Callable[[dict[str, Any]], None] = lambda row: None,
        save_now: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Run this process's part of the job; see `training.loop.train`.

        The tenth row that `progress` is given says what the run will take, as `preflight` (see `training.preflight`).

        Raises:
            TrainingError: it does not fit into this machine; and as `training.loop.train`.
        """
        import torch

        from training import checkpoint
        from training.loader import Loader
        from training.loop import Outcome, train
        from training.model import LanguageModel
        from training.preflight import Enough, Watch, look_ahead

        sources = self.open("train")
        loader = Loader(sources, self.mixture(sources), self.settings.microbatch)
        from training.attention import ATTEND_TO_ALL
        from training.custom_model import require_document_mask
        from training.preference_model import PreferenceModel

        eos, plain = self.corpora[0].index.eos, self.model()
        if self.settings.document_mask and plain.config.model_type not in ATTEND_TO_ALL:
            require_document_mask(plain)
        if self.lora is not None:
            plain = LowRankModel(plain, self.lora, self.seed).model
        if self.preference is None:
            model = LanguageModel(plain, eos, self.document_mask)
        else:
            model = PreferenceModel(plain, eos, self.preference.beta, self.preference.length_normalised)
        sizes = {corpus.name: corpus.bytes_per_token for corpus in self.corpora if corpus.bytes_per_token}
        watch = None
        if self.only_preflight or self.settings.preflight == "auto":
            found = checkpoint.newest(self.folder / "checkpoints", self.archive)
            first = found.step if found else self.trunk.step if self.trunk else 0
            archived = self.archive is not None
            ahead = look_ahead(self.settings, model, loader, self.folder, world, first, archived)
            watch = Watch(ahead, self.only_preflight)

        def watched(row: dict[str, Any]) -> None:
            if watch:
                watch.step(row)
            progress(row)
            if watch:
                watch.end()

        try:
            return train(
                self.settings, model, loader, self.open("validation"), self.folder, world, self.seed, stop, watched,
                self.archive, sizes, self.trunk, save_now, self._prompts(),
            )  # fmt: skip
        except Enough:
            return Outcome(0, stopped=True)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the GPU's memory is full: {error}",
                "lower loop.microbatch, or set loop.activation_checkpointing: full",
            ) from error

    def _prompts(self) -> Prompts | None:
        from training.samples import read_prompts

        if self.tokenizer is None or not self.settings.sample_prompts:
            return None
        artifact, inside = self.tokenizer
        return read_prompts(self.settings.sample_prompts, artifact.local_folder(inside), chat=self.rows != "windows")

    def trained_model(self, found: Checkpoint) -> PreTrainedModel:
        """Return the model of a checkpoint, plain (shared blocks written out, adapters folded in), float32, on the CPU."""
        return _plain(*self._as_trained(found))

    def leave(self, found: Checkpoint, folder: Path, tokenizer: Path) -> tuple[int, dict[str, Any]]:
        """Write the model of a checkpoint, plain, as a Hugging Face folder.

        Returns its number of parameters, and the proof that the folder, loaded anew (float32, on the CPU), predicts what the
        model did in training.

        Raises:
            ModelError: it does not.
        """
        from training.hf_folder import write_hf_folder
        from training.proof import log_probabilities, prove_folder, random_rows

        model, adapted = self._as_trained(found)
        rows = random_rows(model.config.vocab_size, self.settings.sequence_length)
        trained = log_probabilities(model, rows)
        plain = _plain(model, adapted)
        write_hf_folder(plain, folder, tokenizer)
        parameters = sum(parameter.numel() for parameter in plain.parameters())
        del model, adapted, plain  # one copy in memory is enough
        return parameters, prove_folder(folder, rows, trained)

    def _as_trained(self, found: Checkpoint) -> tuple[PreTrainedModel, LowRankModel | None]:
        """Return the model of a checkpoint with its blocks still shared, and its adapters, if it has any, still apart."""
        from training import checkpoint
        from training.model import LanguageModel

        model = self.model()
        adapted = LowRankModel(model, self.lora, self.seed) if self.lora is not None else None
        model = adapted.model if adapted else model
        whole = LanguageModel(model, self.corpora[0].index.eos)
        checkpoint.load_weights(found, whole, averaged=self.settings.average is not None)
        return model, adapted


def _plain(model: PreTrainedModel, adapted: LowRankModel | None) -> PreTrainedModel:
    from training.layer_sharing import unrolled

    return unrolled(adapted.merged() if adapted else model)
