"""The model's arithmetic: padding does not matter, n-grams land where they should, and it can learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from training.model import Noise
from training.small_model import SmallClassifier, SmallConfig

SMALL = SmallConfig(vocabulary_size=50, width=16, heads=2, layers=2, bigram_bits=6, ngram_bits=8)


@pytest.fixture(scope="module")
def model() -> SmallClassifier:
    """Random in every part, the linear half too."""
    made = SmallClassifier(SMALL, seed=3)
    random = np.random.RandomState(3)
    made.ngram_ratio.assign(random.normal(size=(256, 1)))
    made.ngram_weight.assign(random.normal(size=(256, 1)))
    return made


def texts(*lengths: int) -> list[np.ndarray]:
    random = np.random.RandomState(5)
    return [random.randint(1, 50, length).astype(np.int32) for length in lengths]


def padded(rows: list[np.ndarray], length: int, filler: int = 0) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), length), filler, np.int32)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    return ids, mask


@pytest.mark.parametrize("filler", [0, 7])
def test_a_text_gets_the_same_probabilities_alone_and_in_a_padded_batch(
    model: SmallClassifier, filler: int
) -> None:
    rows = texts(2, 3, 17, 60)
    together = model.probabilities(*padded(rows, 80, filler)).numpy()
    alone = np.concatenate([model.probabilities(*padded([row], len(row))).numpy() for row in rows])
    assert np.ptp(together[:, 0]) > 0.01  # the texts do differ
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_probabilities_are_of_two_labels_and_sum_to_one(model: SmallClassifier) -> None:
    found = model.probabilities(*padded(texts(2, 9), 9)).numpy()
    assert found.dtype == np.float32
    assert found.shape == (2, 2)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_a_text_of_a_single_token_has_no_longer_ngrams(model: SmallClassifier) -> None:
    _, present = model.ngram_buckets(*padded(texts(1, 2, 5), 5))
    assert present.numpy().sum(1).tolist() == [1, 2 + 1, 5 + 4 + 3]


def test_equal_ngrams_share_a_bucket_wherever_they_stand_and_others_rarely_do() -> None:
    model = SmallClassifier(SmallConfig(vocabulary_size=5000), seed=1)
    ids = np.array([[11, 12, 13, 11, 12, 13]], np.int32)
    buckets = model.ngram_buckets(ids, np.ones_like(ids))[0].numpy().reshape(3, 6)
    assert (buckets[0, :3] == buckets[0, 3:]).all()
    assert (buckets[1, :2] == buckets[1, 3:5]).all()
    assert buckets[2, 0] == buckets[2, 3]
    every = np.arange(1, 4001, dtype=np.int32)[None]
    found = model.ngram_buckets(every, np.ones_like(every))[0].numpy()
    # About as few buckets are shared as when 12,000 balls fall into 1,048,576 at random.
    assert len(np.unique(found)) > 12_000 - 2 * 12_000**2 / (2 * 1_048_576)


def test_the_order_of_the_tokens_matters_to_both_halves(model: SmallClassifier) -> None:
    ids, mask = padded(texts(12), 12)
    backwards = ids[:, ::-1].copy()
    there, back = (model.logits(tokens, mask).numpy() for tokens in (ids, backwards))
    assert (abs(there - back)[0, :, 1] > 1e-4).all()


def test_more_labels_than_two_have_a_logit_each() -> None:
    model = SmallClassifier(replace(SMALL, labels=4), seed=1)
    ids, mask = padded(texts(3, 9), 9)
    model.prepare([(ids, mask, np.array([2, 0]))])
    assert model.logits(ids, mask).shape == (2, 2, 4)
    np.testing.assert_allclose(model.probabilities(ids, mask).numpy().sum(1), 1, atol=1e-6)


def test_the_ratio_of_an_ngram_is_of_texts_that_hold_it_not_of_occurrences() -> None:
    model = SmallClassifier(SmallConfig(vocabulary_size=10, ngram_order=1, ngram_bits=10), seed=1)
    rows = [np.array([row], np.int32) for row in ([2, 5, 5, 5], [2, 5], [2, 6], [2, 5])]
    labels = [np.array([label]) for label in (1, 1, 0, 0)]
    model.prepare((row, np.ones_like(row), label) for row, label in zip(rows, labels, strict=True))
    ratios = model.ngram_ratio.numpy()[:, 0]
    tokens = np.array([[2], [5], [6]], np.int32)
    found = model.ngram_buckets(tokens, np.ones_like(tokens))[0].numpy()
    bucket = dict(zip((2, 5, 6), found[:, 0], strict=True))
    # One is added to each of 1,024 buckets. In two positive texts 2 and 5, in two negative ones 2, 5 and 6.
    assert ratios[bucket[5]] == pytest.approx(np.log((3 / 1028) / (2 / 1028)))
    assert ratios[bucket[6]] == pytest.approx(np.log((1 / 1028) / (2 / 1028)))
    assert ratios[bucket[2]] == pytest.approx(0)


@pytest.mark.parametrize("shortest", [1, 40, 200])
def test_training_sees_long_texts_in_windows_in_which_every_text_has_tokens(
    model: SmallClassifier, shortest: int
) -> None:
    ids, mask = padded(texts(shortest, 300), 300)
    plain = model.encoder_columns(ids, mask).numpy()
    seen = []
    for number in range(20):
        found = model.encoder_columns(ids, mask, Noise(tf.constant([1, number]))).numpy()
        assert (abs(found) < 100).all()  # a text without a token would have the maximum of nothing
        seen.append(found)
    assert np.std(seen) > 0
    assert not np.allclose(seen[0], plain)


def test_a_text_over_the_model_length_fails_rather_than_being_cut(model: SmallClassifier) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        model.probabilities(*padded(texts(513), 513))


def test_a_seed_gives_the_same_model_and_another_seed_another() -> None:
    one, same, other = (SmallClassifier(SMALL, seed).token_embedding.numpy() for seed in (1, 1, 2))
    assert (one == same).all()
    assert not (one == other).any()


def test_every_variable_but_the_ratios_and_the_mixture_gets_a_gradient(model: SmallClassifier) -> None:
    ids, mask = padded(texts(5, 9), 9)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.logits(ids, mask, Noise(tf.constant([1, 2]))))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    assert len(model.variables) == len(gradients) + 3
    assert {v.name for v in model.sparse_variables()} == {"ngram_weight:0", "bias:0"}
