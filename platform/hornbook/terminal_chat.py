"""`hornbook chat`: a conversation in the terminal with a model that has a chat template; words appear as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hornbook.errors import ModelError
from hornbook.sampling import LoadedModel, chat_inputs, generate

HELP = "/exit ends, /new forgets what was said, /system TEXT sets the system prompt and forgets what was said"


@dataclass
class Conversation:
    """A conversation and how its answers are drawn.

    Attributes:
        loaded: the model.
        system: the system prompt, none if empty; it stays when old turns no longer fit.
        messages: the system prompt and what was said.
    """

    loaded: LoadedModel
    system: str = ""
    max_tokens: int = 200
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ModelError if the model has no chat template."""
        if not self.loaded.tokenizer.chat_template:
            raise ModelError(
                f"{self.loaded.folder} has no chat template: it goes on from texts, it does not answer",
                "`hornbook sample` lets it go on; an sft stage teaches it to answer",
            )
        import torch

        torch.manual_seed(self.seed)
        self.begin(self.system)

    def begin(self, system: str) -> None:
        """Forget what was said; speak below this system prompt."""
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def say(self, text: str, write: Callable[[str], Any]) -> None:
        """Answer a message, piece by piece through `write`. Raises ModelError if it fills the context; it is as if unsaid then."""
        messages = [*self.messages, {"role": "user", "content": text}]
        inputs = chat_inputs(self.loaded.tokenizer, messages, self.loaded.context, self.max_tokens)
        answer = ""
        for piece in generate(
            self.loaded.network, self.loaded.tokenizer, inputs, self.max_tokens, self.temperature, self.top_p
        ):
            answer += piece
            write(piece)
        write("\n")
        self.messages = [*messages, {"role": "assistant", "content": answer}]

    def converse(self, lines: Iterable[str], write: Callable[[str], Any], remark: Callable[[str], Any]) -> None:
        """Answer lines until they end or one is /exit; `remark` takes what is not the model's."""
        for line in lines:
            command, _, rest = line.strip().partition(" ")
            if command in ("/exit", "/quit"):
                return
            if command == "/new":
                self.begin(self.system)
                remark("forgotten")
            elif command == "/system":
                self.begin(rest.strip())
                remark(
                    "a new conversation " + ("below that system prompt" if self.system else "without a system prompt")
                )
            elif command.startswith("/"):
                remark(HELP)
            elif command:
                try:
                    self.say(line.strip(), write)
                except ModelError as error:  # too long a message: the next one may fit
                    remark(str(error))
