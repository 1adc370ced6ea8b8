"""Counts what goes to an engine and what comes back, with the tokenizer of the model that the engine runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from serving.engines.chat_template import ChatTemplate, load_chat_template
from serving.engines.file import TOKENIZER_FILE, Engine, EnginesFileError

_TOKENS_AROUND_A_MESSAGE = 8  # where no template says what stands between messages: role and separators


class Prompt(NamedTuple):
    """What a request gives the model to read: of `tokens` in all, `longest` in its longest part.

    Not `exact` where the model may get something else: pictures, or messages without a chat template.
    """

    text: str
    tokens: int
    longest: int
    exact: bool


class EngineTokenizer:
    """The tokenizer and the chat template of one model. Safe for many threads."""

    def __init__(self, engine: Engine) -> None:
        """Raises: EnginesFileError: a file of the folder can't be read (tokenizer_invalid)."""
        folder = Path(engine.tokenizer)
        try:
            definition = (folder / TOKENIZER_FILE).read_bytes()
            self._tokenizer = Tokenizer.from_buffer(definition)
            self._template: ChatTemplate | None = load_chat_template(folder)
        except Exception as error:  # the libraries raise bare Exceptions too
            raise EnginesFileError("tokenizer_invalid", f"{engine.model}: {folder}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.fingerprint = hashlib.sha256(definition).hexdigest()

    def count(self, text: str) -> int:
        """The tokens of a text, without those that the tokenizer puts around a prompt."""
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], tools: object, more: Mapping[str, Any] | None
    ) -> Prompt:
        """What these messages come to."""
        plain, only_text = _plain(messages)
        if self._template is not None:
            rendered = self._template.render(plain, tools, more)
            if rendered is not None:
                tokens = self.count(rendered)
                return Prompt(rendered, tokens, tokens, only_text)
        text = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in plain)
        if tools:
            text += f"\n{tools}"
        tokens = self.count(text) + _TOKENS_AROUND_A_MESSAGE * len(plain)
        return Prompt(text, tokens, tokens, exact=False)

    def texts(self, inputs: Sequence[str | Sequence[int]]) -> Prompt:
        """What these prompts come to: each a text, or its tokens already."""
        texts = [one for one in inputs if isinstance(one, str)]
        lengths = [len(one) for one in inputs if not isinstance(one, str)]
        if texts:
            lengths += [len(one.ids) for one in self._tokenizer.encode_batch_fast(texts)]
        shown = texts or [str(list(one)) for one in inputs]
        return Prompt("\n".join(shown), sum(lengths), max(lengths), exact=True)

    def counts(self, texts: Iterable[str]) -> int:
        """The tokens of several answers together."""
        return sum(self.count(text) for text in texts if text)


def _plain(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """Messages whose content is one text, as engines join its parts; and whether text is all there is."""
    plain, only_text = [], True
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            texts = [text for text in parts if isinstance(text, str)]
            only_text = only_text and len(texts) == len(content)
            content = "\n".join(texts)
        plain.append({**message, "content": content})
    return plain, only_text
