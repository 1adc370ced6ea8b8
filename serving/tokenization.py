"""The tokenizer and the model card of one exported version: what its tokens are counted with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tokenizers import Tokenizer
from typing_extensions import Self

from serving.errors import EmptyTextError, ModelRejectedError, TextTooLongError
from serving.pieces import Pieces
from tallybook.usage import NAME

Task = Literal["classification", "embedding"]
_FEW_LABELS = 32  # whose outputs are all counted when a version is loaded: some 50 ms for two


class VersionRefusedError(Exception):
    """An exported version that the API can't count for; the message says why."""


class _Label(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    name: str = Field(min_length=1)
    explanation: str


class _Card(BaseModel):
    """The part of model_card.json that serving needs."""

    model_config = ConfigDict(strict=True, extra="ignore")
    name: str
    version: int = Field(ge=1)
    task: Task = "classification"
    labels: list[_Label]
    dimension: int | None = Field(None, ge=1)
    max_length_tokens: int = Field(ge=1)
    tokenizer_fingerprint: str

    @model_validator(mode="after")
    def _says_what_is_answered(self) -> Self:
        if self.task == "classification" and not self.labels:
            raise ValueError("labels: a model that classifies needs one")
        if self.task == "embedding" and (self.labels or self.dimension is None):
            raise ValueError("a model that embeds has a dimension, and no labels")
        return self


class Answer(NamedTuple):
    """What a user receives, and its length in tokens."""

    label: str
    probabilities: dict[str, float]
    output: str
    completion_tokens: int


class ModelVersion:
    """One version of a model, as far as the API knows it. Safe for many threads."""

    def __init__(self, card: _Card, tokenizer: Tokenizer) -> None:
        self.model = card.name
        self.version = card.version
        self.version_name = str(card.version)
        self.tokenizer_fingerprint = card.tokenizer_fingerprint
        self.max_length_tokens = card.max_length_tokens
        self.task = card.task
        self.dimension = card.dimension  # of its embeddings
        self.vocabulary_size = 1 + max(tokenizer.get_vocab().values(), default=-1)
        self._labels = [(label.name, label.explanation) for label in card.labels]
        self._tokenizer = tokenizer
        self._pieces = Pieces(tokenizer)
        self._special_tokens = tokenizer.num_special_tokens_to_add(False)
        # Some thousand outputs at most: a label and a percentage with one decimal.
        self._output_tokens: dict[str, int] = {}
        self.most_output_tokens = self._count_all()  # that any answer of this version may have

    def ids(self, text: str) -> list[int]:
        """The ids of any text, special tokens included: more than the model takes, or none, if so it is."""
        return self._pieces.ids(text)

    def prompt_ids(self, text: str) -> list[int]:
        """The ids that the model gets for this text, special tokens included; never cut.

        Raises: TextTooLongError; EmptyTextError: no token but special ones is left of the text.
        """
        ids = self._pieces.ids(text)
        if len(ids) > self.max_length_tokens:
            raise TextTooLongError(
                f"The text has {len(ids)} tokens; version {self.version} of {self.model} "
                f"takes at most {self.max_length_tokens}."
            )
        if self.is_empty(ids):
            raise EmptyTextError("The text has nothing that the model can read.")
        return ids

    def is_empty(self, ids: Sequence[int]) -> bool:
        """Whether these ids of a text are none but special ones."""
        return len(ids) <= self._special_tokens

    def label_count(self) -> int:
        """How many labels it tells apart."""
        return len(self._labels)

    def label(self, probabilities: Sequence[float]) -> str:
        """The likeliest label; the first of several. Raises: as `answer`."""
        return self._labels[self._best(probabilities)][0]

    def answer(self, probabilities: Sequence[float]) -> Answer:
        """What to tell the user about these probabilities, in the order of the card's labels.

        Raises: ModelRejectedError: they are not one probability for each label.
        """
        best = self._best(probabilities)
        label, explanation = self._labels[best]
        output = _output(label, explanation, probabilities[best])
        names = (name for name, _ in self._labels)
        return Answer(label, dict(zip(names, probabilities, strict=True)), output, self._count(output))

    def _best(self, probabilities: Sequence[float]) -> int:
        if len(probabilities) != len(self._labels) or not all(0 <= p <= 1.001 for p in probabilities):
            raise ModelRejectedError("The model's answer is not one probability for each of its labels.")
        return max(range(len(self._labels)), key=probabilities.__getitem__)

    def _count_all(self) -> int:
        if not self._labels:
            return 0
        if len(self._labels) > _FEW_LABELS:  # no tokenizer that loads here makes more tokens than bytes
            return max(len(_output(*label, 1.0).encode()) for label in self._labels)
        outputs = [
            _output(*label, thousandths / 1000) for label in self._labels for thousandths in range(1002)
        ]
        encoded = self._tokenizer.encode_batch(outputs, add_special_tokens=False)
        self._output_tokens = {output: len(each.ids) for output, each in zip(outputs, encoded, strict=True)}
        return max(self._output_tokens.values())

    def _count(self, output: str) -> int:
        count = self._output_tokens.get(output)
        if count is None:
            count = len(self._tokenizer.encode(output, add_special_tokens=False).ids)
            self._output_tokens[output] = count
        return count


def _output(label: str, explanation: str, probability: float) -> str:
    return f"{label}：{explanation}，把握 {probability:.1%}。"


def load_version(models_dir: Path, model: str, version: int, task: Task | None = None) -> ModelVersion:
    """Read what an exported version says of itself, and check that it is the version asked for.

    Raises: VersionRefusedError: a file is missing or can't be read, the card is of another model or version,
        or of another task than `task`, the tokenizer is not the one that the card names, or it pads or
        truncates.
    """
    folder = models_dir / model / str(version) / "assets.extra"
    try:
        card = _Card.model_validate_json((folder / "model_card.json").read_bytes())
        definition = (folder / "tokenizer.json").read_bytes()
    except OSError as error:
        raise VersionRefusedError(f"{error.filename}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise VersionRefusedError(f"model_card.json: {place}: {first['msg']}") from None
    if (card.name, card.version) != (model, version):
        raise VersionRefusedError(f"model_card.json is that of version {card.version} of {card.name}")
    if task not in (None, card.task):
        raise VersionRefusedError(f"it is made for {card.task}, not for {task}")
    if not NAME.fullmatch(card.name):
        raise VersionRefusedError("the model's name is not 1-128 of letters, digits and ._@:-")
    if len({label.name for label in card.labels}) != len(card.labels):
        raise VersionRefusedError("model_card.json names a label twice")
    found = hashlib.sha256(definition).hexdigest()
    if found != card.tokenizer_fingerprint:
        raise VersionRefusedError(
            f"tokenizer.json has the fingerprint {found}, the model card names {card.tokenizer_fingerprint}"
        )
    try:
        tokenizer = Tokenizer.from_buffer(definition)
    except Exception as error:  # noqa: BLE001 -- the library raises the bare Exception class
        raise VersionRefusedError(f"tokenizer.json can't be read: {error}") from None
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        raise VersionRefusedError("tokenizer.json truncates or pads, so it would miscount")
    return ModelVersion(card, tokenizer)
