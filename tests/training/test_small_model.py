"""The model's arithmetic: padding does not matter, n-grams land where they should, and it can learn."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from training.small_model import ModelConfig, ReviewClassifier

SMALL = ModelConfig(vocabulary_size=50, width=16, heads=2, layers=2, bigram_bits=6, ngram_bits=8)


@pytest.fixture(scope="module")
def model() -> ReviewClassifier:
    """Random in every part, the linear half too."""
    made = ReviewClassifier(SMALL, seed=3)
    random = np.random.RandomState(3)
    made.ngram_ratio.assign(random.normal(size=256))
    made.ngram_weight.assign(random.normal(size=256))
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
    model: ReviewClassifier, filler: int
) -> None:
    rows = texts(2, 3, 17, 60)
    together = model.probabilities(*padded(rows, 80, filler)).numpy()
    alone = np.concatenate([model.probabilities(*padded([row], len(row))).numpy() for row in rows])
    assert np.ptp(together[:, 0]) > 0.01  # the texts do differ
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_probabilities_are_of_two_labels_and_sum_to_one(model: ReviewClassifier) -> None:
    found = model.probabilities(*padded(texts(2, 9), 9)).numpy()
    assert found.dtype == np.float32
    assert found.shape == (2, 2)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_a_text_of_a_single_token_has_no_longer_ngrams(model: ReviewClassifier) -> None:
    _, present = model.ngram_buckets(*padded(texts(1, 2, 5), 5))
    assert present.numpy().sum(1).tolist() == [1, 2 + 1, 5 + 4 + 3]


def test_equal_ngrams_share_a_bucket_wherever_they_stand_and_others_rarely_do() -> None:
    model = ReviewClassifier(ModelConfig(vocabulary_size=5000), seed=1)
    ids = np.array([[11, 12, 13, 11, 12, 13]], np.int32)
    buckets = model.ngram_buckets(ids, np.ones_like(ids))[0].numpy().reshape(3, 6)
    assert (buckets[0, :3] == buckets[0, 3:]).all()
    assert (buckets[1, :2] == buckets[1, 3:5]).all()
    assert buckets[2, 0] == buckets[2, 3]
    every = np.arange(1, 4001, dtype=np.int32)[None]
    found = model.ngram_buckets(every, np.ones_like(every))[0].numpy()
    # About as few buckets are shared as when 12,000 balls fall into 1,048,576 at random.
    assert len(np.unique(found)) > 12_000 - 2 * 12_000**2 / (2 * 1_048_576)


def test_the_order_of_the_tokens_matters_to_both_halves(model: ReviewClassifier) -> None:
    ids, mask = padded(texts(12), 12)
    backwards = ids[:, ::-1].copy()
    encoder, ngrams = model.encoder_logit, model.ngram_logit
    assert abs(encoder(ids, mask, training=False) - encoder(backwards, mask, training=False)).numpy() > 1e-4
    assert abs(ngrams(ids, mask) - ngrams(backwards, mask)).numpy() > 1e-4


def test_a_text_over_the_model_length_fails_rather_than_being_cut(model: ReviewClassifier) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        model.probabilities(*padded(texts(513), 513))


def test_a_seed_gives_the_same_model_and_another_seed_another() -> None:
    one, same, other = (ReviewClassifier(SMALL, seed).token_embedding.numpy() for seed in (1, 1, 2))
    assert (one == same).all()
    assert not (one == other).any()


def test_every_variable_but_the_ratios_and_the_mixture_gets_a_gradient(model: ReviewClassifier) -> None:
    ids, mask = padded(texts(5, 9), 9)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.encoder_logit(ids, mask, training=True) + model.ngram_logit(ids, mask))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    assert len(model.variables) == len(gradients) + 2
    assert len(model.encoder_variables()) == len(gradients) - 2
