"""Trains the tokenizer of a small model on the corpora that the model will read.

Byte-level BPE: every byte string has an encoding and comes back unchanged. The corpora are streamed twice, once to count
and once to train on a sample of bounded size in which each corpus has an equal say; byte-level training holds only word
counts, but those of a hundred gigabytes of web text do not fit a laptop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from hornbook.artifact import Artifact
from hornbook.errors import DataError
from hornbook.plan import derive_seed
from hornbook.settings import Settings
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult
from hornbook.tool_calls import Form
from training.chat_templates import TEMPLATES, TemplateName, chat_template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDER = "tokenizer"
END_OF_TEXT = "<|endoftext|>"
PIECE_CHARACTERS = 1 << 20
CHECKED_DOCUMENTS = 200
HARD_TEXTS = (
    "",
    " ",
    "\t\tindented\twith tabs\n\n\n  and spaces \r\n",
    "naïve café, 你好, שלום, 😀👩‍👩‍👧, e\u0301 \u200b\ufeff",
    "def f(x):\n    return x ** 2  # 1234567890\n",
    "<|endoftext|> and <|user|> written by a person",
    "\x00\x01\x7f\ufffd",
)


class TokenizerSettings(Settings):
    """What the tokenizer is trained to."""

    vocabulary: int = Field(4096, ge=512, le=1 << 20, description="Entries, special tokens and 256 bytes included.")
    minimum_frequency: int = Field(2, ge=1, description="A pair seen less often is not merged.")
    sample_megabytes: float = Field(256, gt=0, description="Text that it is trained on, shared equally by the corpora.")
    template: TemplateName = Field("phi-3", description="How conversations are written; see docs/training/tuning.md.")
    calls: Form | None = Field(None, description="The template also takes tools and writes calls, in this form.")
    context: int = Field(2048, ge=16, description="Longest input that the tokenizer declares (model_max_length).")


class TokenizerStage(Stage):
    """Trains, checks and saves a tokenizer as a Hugging Face folder."""

    kind = "tokenizer"
    produces = "tokenizer"
    Settings = TokenizerSettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents", many=True)}
    settings: TokenizerSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return its entries."""
        return Expected(planned=self.settings.vocabulary, unit="entries", rows=self.settings.vocabulary)

    def run(self, context: StageContext) -> StageResult:
        """Train on the input corpora; refuse a tokenizer that changes any checked text."""
        corpora = context.inputs["documents"]
        sample = Sample(corpora, int(self.settings.sample_megabytes * 1e6), derive_seed(context.seed, "sample"))
        with context.progress(sample.documents, "documents") as progress:
            tokenizer = train_bpe(
                sample.texts(progress.advance),
                self.settings.vocabulary,
                self.settings.minimum_frequency,
                self.settings.template,
            )
        context.check_stop()
        checked = check_round_trips(tokenizer, sample.first_texts(CHECKED_DOCUMENTS))
        with context.scratch() as folder:
            settings = self.settings
            made = as_hugging_face(tokenizer, settings.context, settings.template, settings.calls)
            made.save_pretrained(folder)
            files = context.save_folder(folder, FOLDER)
        return StageResult(
            metrics={
                "entries": tokenizer.get_vocab_size(),
                "sample_bytes": sample.sampled_bytes,
                "corpus_bytes": sample.total_bytes,
                "round_trips_checked": checked,
                "bytes_per_token": round(bytes_per_token(tokenizer, sample.first_texts(CHECKED_DOCUMENTS)), 3),
            },
            files=files,
        )


class Sample:
    """A deterministic sample of some corpora: a document is in it if the hash of its key is small enough.

    Args:
        corpora: document artifacts.
        wanted_bytes: about how much text to sample, an equal amount of each corpus.
        seed: of the choice.

    Raises:
        DataError: there is no text at all.
    """

    def __init__(self, corpora: Sequence[Artifact], wanted_bytes: int, seed: int) -> None:
        import pyarrow.compute as pc

        self._corpora, self._seed = corpora, seed
        self._shares = []
        self.total_bytes = self.sampled_bytes = self.documents = 0
        for corpus in corpora:
            size = 0
            for table in corpus.tables(columns=["text"]):
                size += pc.sum(pc.binary_length(table.column("text"))).as_py() or 0
                self.documents += table.num_rows
            self._shares.append(min(1.0, wanted_bytes / len(corpora) / max(size, 1)))
            self.total_bytes += size
        if not self.total_bytes:
            raise DataError("the corpora hold no text to train a tokenizer on", "check the stages before this one")

    def texts(self, advance: Any = lambda documents: None) -> Iterator[str]:
        """Yield the sampled texts, long ones in pieces; `advance` is told of the documents passed."""
        for corpus, share in zip(self._corpora, self._shares, strict=True):
            for table in corpus.tables(columns=["key", "text"]):
                for key, text in zip(table.column("key").to_pylist(), table.column("text").to_pylist(), strict=True):
                    if derive_seed(self._seed, key.hex()) < share * (1 << 63):
                        self.sampled_bytes += len(text.encode())
                        for start in range(0, len(text), PIECE_CHARACTERS):
                            yield text[start : start + PIECE_CHARACTERS]
                advance(table.num_rows)

    def first_texts(self, count: int) -> Iterator[str]:
        """Yield the first documents of each corpus, `count` in all."""
        each = -(-count // len(self._corpora))
        for corpus in self._corpora:
            left = each
            for table in corpus.tables(columns=["text"]):
                yield from table.column("text").slice(0, left).to_pylist()
                left -= min(left, table.num_rows)
                if not left:
                    break


def train_bpe(
    texts: Iterator[str], vocabulary: int, minimum_frequency: int = 2, template: TemplateName = "phi-3"
) -> Tokenizer:
    """Return a byte-level BPE tokenizer (GPT-2's splitting, Radford et al. 2019) with a chat template's special tokens.

    <|endoftext|> has id 0, the template's tokens follow. A prompt is opened by <|endoftext|>, as every document is in
    training.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=minimum_frequency,
        special_tokens=[END_OF_TEXT, *TEMPLATES[template].tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    return tokenizer


def as_hugging_face(
    tokenizer: Tokenizer, context: int, template: TemplateName = "phi-3", calls: Form | None = None
) -> Any:
    """Wrap a tokenizer for transformers, with its special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(TEMPLATES[template].tokens),
        chat_template=chat_template(template, calls),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> Any:
    """Return the transformers tokenizer of a folder that holds a tokenizer.json, as `as_hugging_face` saves it.

    AutoTokenizer would return the same, and import torch first: 5.3 instead of 0.9 s of processor time in every worker.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def check_round_trips(tokenizer: Tokenizer, texts: Iterator[str]) -> int:
    """Check that texts come back unchanged, special tokens' names in them included; returns how many were checked.

    Raises:
        DataError: one does not; the message shows where.
    """
    checked = 0
    tokenizer.encode_special_tokens = True  # a document that says <|end|> is text, not the end of a turn
    try:
        for text in (*HARD_TEXTS, *texts):
            back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
            if back != text:
                at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
                raise DataError(
                    f"the tokenizer changes a text at character {at}: {text[at : at + 40]!r} -> {back[at : at + 40]!r}",
                    "this is a bug of hornbook's or of the `tokenizers` version installed",
                )
            checked += 1
    finally:
        tokenizer.encode_special_tokens = False
    return checked


def bytes_per_token(tokenizer: Tokenizer, texts: Iterator[str]) -> float:
    """Return the UTF-8 bytes that one token stands for, on average over all texts together."""
    size = tokens = 0
    for text in texts:
        size += len(text.encode())
        tokens += len(tokenizer.encode(text, add_special_tokens=False).ids)
    return size / max(tokens, 1)
