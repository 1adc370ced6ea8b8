"""Training on few reviews: it learns, keeps its best epoch, and repeats itself to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from tokenizers import Tokenizer

from training.dataset import Dataset, Split, load_reviews
from training.errors import TrainingError
from training.evaluation import log_loss, measure
from training.small_model import ModelConfig, ReviewClassifier
from training.tokenizer import build_tokenizer
from training.trainer import (
    AdamW,
    Encoded,
    Epoch,
    TrainingConfig,
    batches,
    encode,
    fit_mixture,
    ngram_ratios,
    predict,
    train,
)

CONFIG = TrainingConfig(epochs=3, batch_size=32)


@pytest.fixture(scope="module")
def reviews() -> Dataset:
    return load_reviews(limit=1200)


@pytest.fixture(scope="module")
def tokenizer(reviews: Dataset) -> Tokenizer:
    return build_tokenizer(reviews.train.texts)


def fresh_model(tokenizer: Tokenizer) -> ReviewClassifier:
    config = ModelConfig(tokenizer.get_vocab_size(), width=32, bigram_bits=12, ngram_bits=16)
    return ReviewClassifier(config, seed=1)


def trained(tokenizer: Tokenizer, reviews: Dataset) -> tuple[ReviewClassifier, list[Epoch]]:
    model = fresh_model(tokenizer)
    splits = [encode(tokenizer, split, 512) for split in (reviews.train, reviews.validation)]
    return model, train(model, splits[0], splits[1], CONFIG)


@pytest.fixture(scope="module")
def outcome(tokenizer: Tokenizer, reviews: Dataset) -> tuple[ReviewClassifier, list[Epoch]]:
    return trained(tokenizer, reviews)


def test_held_out_reviews_are_told_apart(
    outcome: tuple[ReviewClassifier, list[Epoch]], tokenizer: Tokenizer, reviews: Dataset
) -> None:
    held_out = encode(tokenizer, reviews.test, 512)
    assert measure(held_out.labels, predict(outcome[0], held_out.ids)).accuracy > 0.7


def test_the_model_is_left_as_after_its_best_epoch(
    outcome: tuple[ReviewClassifier, list[Epoch]], tokenizer: Tokenizer, reviews: Dataset
) -> None:
    model, epochs = outcome
    validation = encode(tokenizer, reviews.validation, 512)
    found = log_loss(validation.labels, predict(model, validation.ids))
    assert [e.number for e in epochs] == [1, 2, 3]
    assert found == pytest.approx(min(e.validation_log_loss for e in epochs), abs=1e-5)


def test_the_same_seed_trains_the_same_model(
    outcome: tuple[ReviewClassifier, list[Epoch]], tokenizer: Tokenizer, reviews: Dataset
) -> None:
    again, epochs = trained(tokenizer, reviews)
    assert epochs == outcome[1]
    for variable, same in zip(outcome[0].variables, again.variables, strict=True):
        assert (variable.numpy() == same.numpy()).all()


def test_a_text_over_the_model_length_is_refused_not_cut(tokenizer: Tokenizer) -> None:
    with pytest.raises(TrainingError) as caught:
        encode(tokenizer, Split(("好", "好" * 511), (1, 1)), 512)
    assert caught.value.code == "text_too_long"


def test_batches_hold_every_text_once_whole_and_beside_others_of_like_length() -> None:
    random = np.random.RandomState(0)
    ids = [random.randint(1, 99, random.randint(2, 200)).astype(np.int32) for _ in range(300)]
    seen: list[int] = []
    for chosen, padded, mask in batches(ids, 32, random):
        seen.extend(chosen.tolist())
        assert padded.shape == mask.shape
        assert mask.any(0).all()  # no column of padding alone
        for index, row, present in zip(chosen, padded, mask, strict=True):
            assert row[present == 1].tolist() == ids[index].tolist()
            assert not row[present == 0].any()
        assert max(len(ids[i]) for i in chosen) <= 1.2 * min(len(ids[i]) for i in chosen) + 40
    assert sorted(seen) == list(range(300))


def test_batches_come_in_another_order_each_epoch() -> None:
    ids = [np.full(n, 5, np.int32) for n in range(2, 130)]
    random = np.random.RandomState(0)
    first, second = ([chosen.tolist() for chosen, _, _ in batches(ids, 16, random)] for _ in range(2))
    assert first != second


def test_the_ratio_of_an_ngram_is_of_texts_that_hold_it_not_of_occurrences() -> None:
    model = ReviewClassifier(ModelConfig(vocabulary_size=10, ngram_order=1, ngram_bits=10), seed=1)
    rows = [np.array(row, np.int32) for row in ([2, 5, 5, 5], [2, 5], [2, 6], [2, 5])]
    ratios = ngram_ratios(model, Encoded(rows, np.array([1, 1, 0, 0])))
    tokens = np.array([[2], [5], [6]], np.int32)
    found = model.ngram_buckets(tokens, np.ones_like(tokens))[0].numpy()
    bucket = dict(zip((2, 5, 6), found[:, 0], strict=True))
    # One is added to each of 1,024 buckets. In two positive texts 2 and 5, in two negative ones 2, 5 and 6.
    total = 1024 + 4
    assert ratios[bucket[5]] == pytest.approx(np.log((3 / total) / (2 / total)))
    assert ratios[bucket[6]] == pytest.approx(np.log((1 / total) / (2 / total)))
    assert ratios[bucket[2]] == pytest.approx(0)


def test_the_mixture_trusts_the_logit_that_is_right_and_recovers_a_known_one() -> None:
    random = np.random.RandomState(0)
    logits = random.normal(size=(20_000, 2)) * 2
    truth = 1.5 * logits[:, 0] + 0.5 * logits[:, 1] - 0.3
    labels = (random.uniform(size=20_000) < 1 / (1 + np.exp(-truth))).astype(np.int64)
    np.testing.assert_allclose(fit_mixture(logits, labels), [1.5, 0.5, -0.3], atol=0.08)


def test_the_mixture_stays_finite_when_few_texts_are_told_apart_perfectly() -> None:
    logits = np.array([[5.0, 5.0], [-5.0, -5.0], [4.0, 4.0], [-4.0, -4.0]])
    weights = fit_mixture(logits, np.array([1, 0, 1, 0]))
    assert (weights[:2] > 0.3).all()
    assert (weights[:2] < 1).all()


def test_adamw_takes_the_step_of_the_paper() -> None:
    matrix, vector = tf.Variable([[2.0]]), tf.Variable([2.0])
    AdamW([matrix, vector], weight_decay=0.1).apply([tf.constant([[0.3]]), tf.constant([0.3])], 0.01)
    # The first step is the rate times the gradient's sign, and the matrix alone decays.
    assert matrix.numpy()[0, 0] == pytest.approx(2 - 0.01 * (1 + 0.1 * 2), abs=1e-6)
    assert vector.numpy()[0] == pytest.approx(2 - 0.01, abs=1e-6)
