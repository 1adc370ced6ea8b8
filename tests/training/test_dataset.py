"""The reviews: cleaned, split, and the same for everyone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from training.dataset import MAX_CHARACTERS, Dataset, held_out_texts, load_reviews
from training.errors import TrainingError


@pytest.fixture(scope="module")
def reviews() -> Dataset:
    return load_reviews()


def write(folder: Path, negative: str, positive: str) -> Path:
    (folder / "neg.txt").write_text(negative, "utf-8")
    (folder / "pos.txt").write_text(positive, "utf-8")
    return folder


def numbered(word: str, count: int) -> str:
    return "\n".join(f"{word} {n}" for n in range(count))


def test_every_line_of_the_reviews_is_accounted_for(reviews: Dataset) -> None:
    counts = dict(reviews.counts)
    read = counts.pop("read")
    assert read == sum(counts.values()) > 35_000
    assert counts["train"] == len(reviews.train.texts) == len(reviews.train.labels)
    assert (counts["duplicates"], counts["contradictory"]) == (17_715, 47)


def test_no_text_is_in_two_splits(reviews: Dataset) -> None:
    texts = [*reviews.train.texts, *reviews.validation.texts, *reviews.test.texts]
    assert len(texts) == len(set(texts))


def test_the_splits_are_80_10_10_and_share_the_labels_alike(reviews: Dataset) -> None:
    splits = (reviews.train, reviews.validation, reviews.test)
    total = sum(len(s.texts) for s in splits)
    assert [round(len(s.texts) / total, 3) for s in splits] == [0.8, 0.1, 0.1]
    shares = [sum(s.labels) / len(s.labels) for s in splits]
    assert max(shares) - min(shares) < 0.001


def test_the_split_does_not_change_from_release_to_release(reviews: Dataset) -> None:
    assert reviews.sha256 == "50020a95ddc439bd7c8dd967834c2a019429a9d5a532f31c22d6c2c1a181ee16"
    assert reviews.test.texts[0] == "最大支持容量 8GB 对以后的升级提供很大空间！"


def test_what_a_limited_training_sees_is_not_in_the_test_split_of_the_whole(reviews: Dataset) -> None:
    few = load_reviews(limit=400)
    seen = {*few.train.texts, *few.validation.texts, *few.test.texts}
    assert len(seen) == 400
    assert not seen & set(reviews.test.texts)
    assert few.sha256 != reviews.sha256


def test_white_space_repetitions_contradictions_and_essays_are_taken_out(tmp_path: Path) -> None:
    essay = "长" * (MAX_CHARACTERS + 1)
    negative = f"很 差\n很\u3000差\t\n\n都有\n{essay}\n{numbered('bad', 20)}"
    dataset = load_reviews(write(tmp_path, negative, f"都有\r\n{numbered('good', 20)}"))
    texts = {*dataset.train.texts, *dataset.validation.texts, *dataset.test.texts}
    assert "很 差" in texts
    assert not {"都有", essay} & texts
    assert dataset.counts == {
        "read": 45, "duplicates": 2, "contradictory": 1, "too_long": 1, "beyond_limit": 0,
        "train": 32, "validation": 4, "test": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("negative", "positive", "code"),
    [
        ("", "\n \n", "empty_data"),
        ("same", "same", "empty_data"),
        ("", numbered("good", 50), "one_class"),
        (numbered("bad", 3), numbered("good", 3), "too_few_texts"),
    ],
)
def test_data_to_learn_nothing_from_is_refused(
    tmp_path: Path, negative: str, positive: str, code: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        load_reviews(write(tmp_path, negative, positive))
    assert caught.value.code == code


def test_a_limit_that_leaves_a_split_without_a_label_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        load_reviews(limit=8)
    assert caught.value.code == "too_few_texts"


def test_a_missing_file_and_one_that_is_not_utf8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as missing:
        load_reviews(tmp_path)
    write(tmp_path, "bad", "good")
    (tmp_path / "pos.txt").write_bytes("很好".encode("gbk"))
    with pytest.raises(TrainingError) as invalid:
        load_reviews(tmp_path)
    assert (missing.value.code, invalid.value.code) == ("data_missing", "invalid_text")


def test_the_held_out_texts_come_without_tensorflow_numpy_or_snownlp(reviews: Dataset) -> None:
    code = (
        "import sys; from training.dataset import held_out_texts; print(len(held_out_texts()));"
        "print([m for m in ('tensorflow', 'numpy', 'snownlp', 'sklearn') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.split("\n")[:2] == [str(len(reviews.test.texts)), "[]"]
    assert held_out_texts() == list(reviews.test.texts)
