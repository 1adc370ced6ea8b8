"""The texts to learn from: cleaned, split by their hashes, and the same for everyone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from training.batches import encode_all
from training.dataset import Dataset, held_out_texts, load_texts
from training.errors import TrainingError
from training.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def reviews() -> Dataset:
    return load_texts()


def write(folder: Path, *rows: tuple[str, str]) -> Path:
    file = folder / "texts.tsv"
    file.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), "utf-8")
    return file


def numbered(word: str, count: int) -> list[tuple[str, str]]:
    return [(f"{word} {n}", word) for n in range(count)]


def texts_of(dataset: Dataset) -> set[str]:
    return {text for split in dataset.splits for text in split.texts}


def test_every_line_of_the_reviews_is_accounted_for(reviews: Dataset) -> None:
    counts = dict(reviews.counts)
    read = counts.pop("read")
    assert read == sum(counts.values()) > 35_000
    assert counts["train"] == len(reviews.train.texts) == len(reviews.train.labels)
    assert (counts["duplicates"], counts["contradictory"]) == (17_715, 47)
    assert reviews.labels == ("negative", "positive")


def test_no_text_is_in_two_splits(reviews: Dataset) -> None:
    assert len(texts_of(reviews)) == sum(len(split.texts) for split in reviews.splits)


def test_the_splits_are_about_80_10_10_and_share_the_labels_about_alike(reviews: Dataset) -> None:
    total = len(texts_of(reviews))
    assert [round(len(s.texts) / total, 2) for s in reviews.splits] == [0.8, 0.1, 0.1]
    shares = [sum(s.labels) / len(s.labels) for s in reviews.splits]
    assert max(shares) - min(shares) < 0.03


def test_the_split_does_not_change_from_release_to_release(reviews: Dataset) -> None:
    assert reviews.sha256 == "6820a15adcbcfea7f3371488a3faee32bff999251381d11c1411161e2bef569b"
    assert reviews.test.texts[0].startswith("非常好的酒店，服务员热情，酒")


def test_a_text_stays_in_its_split_whatever_else_is_there(tmp_path: Path) -> None:
    few = load_texts(write(tmp_path, *numbered("good", 200), *numbered("bad", 200)))
    more = load_texts(write(tmp_path, *numbered("good", 900), *numbered("bad", 900), *numbered("odd", 500)))
    for old, new in zip(few.splits, more.splits, strict=True):
        assert set(old.texts) < set(new.texts)


def test_what_a_limited_training_sees_is_not_in_the_test_split_of_the_whole(reviews: Dataset) -> None:
    few = load_texts(limit=400)
    assert len(texts_of(few)) == 400
    assert not {*few.train.texts, *few.validation.texts} & set(reviews.test.texts)
    assert few.sha256 != reviews.sha256


def test_white_space_repetitions_contradictions_and_empty_texts_are_taken_out(tmp_path: Path) -> None:
    rows = [("很 差", "bad"), ("很\u3000差 ", "bad"), (" ", "bad"), ("都有", "bad"), ("都有", "good")]
    dataset = load_texts(write(tmp_path, *rows, *numbered("bad", 60), *numbered("good", 60)))
    assert "很 差" in texts_of(dataset)
    assert "都有" not in texts_of(dataset)
    counts = dict(dataset.counts)
    assert (counts["read"], counts["empty"], counts["duplicates"], counts["contradictory"]) == (125, 1, 2, 1)
    assert sum(counts[name] for name in ("train", "validation", "test")) == 121


def test_texts_over_the_model_length_are_left_out_and_counted_not_cut(tmp_path: Path) -> None:
    rows = [*numbered("bad", 100), *numbered("good", 100), *((f"{'长' * n}", "good") for n in range(60, 80))]
    whole = load_texts(write(tmp_path, *rows))
    tokenizer: Tokenizer = build_tokenizer(whole.train.texts)
    fitting, encoded = encode_all(tokenizer, whole, longest=64)
    assert fitting.counts["too_long"] == 17
    assert max(len(ids) for split in encoded for ids in split.ids) == 64
    for split, ids in zip(fitting.splits, encoded, strict=True):
        assert [tokenizer.encode(text).ids for text in split.texts] == [row.tolist() for row in ids.ids]
        assert list(split.labels) == ids.labels.tolist()
    assert encode_all(tokenizer, whole, longest=512)[0] is whole


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([], "empty_data"),
        ([(" ", "bad")], "empty_data"),
        ([("same", "bad"), ("same", "good")], "empty_data"),
        (numbered("good", 50), "one_class"),
        ([*numbered("good", 3), *numbered("bad", 3)], "too_few_texts"),
        ([(f"text {n}", f"label {n}") for n in range(1001)], "too_many_labels"),
    ],
    ids=["no rows", "empty texts", "contradictions", "one label", "six texts", "a label a text"],
)
def test_data_to_learn_nothing_from_is_refused(
    tmp_path: Path, rows: list[tuple[str, str]], code: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        load_texts(write(tmp_path, *rows))
    assert caught.value.code == code


def test_the_held_out_texts_come_without_tensorflow_numpy_or_snownlp(reviews: Dataset) -> None:
    code = (
        "import sys; from training.dataset import held_out_texts; print(len(held_out_texts()));"
        "print([m for m in ('tensorflow', 'numpy', 'snownlp', 'sklearn') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = held_out_texts()
    assert told.stdout.split("\n")[:2] == [str(len(found)), "[]"]
    assert set(found) <= set(reviews.test.texts)
