"""BERT's arithmetic against an independent one, and what holds of every encoder."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from tests.training.checkpoints import tiny_weights, write_checkpoint
from tests.training.numpy_bert import token_vectors
from training.bert_classifier import BertClassifier
from training.model import BertConfig, BertEmbedder, BertEncoder, Noise
from training.pretrained import load_checkpoint

SMALL = BertConfig(
    vocabulary_size=50, width=16, heads=2, layers=2, feed_forward_width=32, max_length_tokens=64
)
TEXTS = [[2, 7, 3], [2, 9, 10, 11, 41, 3], [2, *range(5, 40), 3]]


def padded(rows: list[list[int]], length: int, filler: int = 0) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), length), filler, np.int32)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    return ids, mask


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> BertEncoder:
    checkpoint = load_checkpoint(str(write_checkpoint(tmp_path_factory.mktemp("tiny"))))
    made = BertEncoder(checkpoint.config, np.random.RandomState(0))
    checkpoint.fill(made)
    return made


@pytest.mark.parametrize("filler", [0, 9])
def test_each_token_gets_the_vector_of_an_independent_computation(encoder: BertEncoder, filler: int) -> None:
    ids, mask = padded(TEXTS, 48, filler)
    found = encoder(ids, mask).numpy()
    for row, text in enumerate(TEXTS):
        wanted = token_vectors(tiny_weights(), heads=4, ids=text)
        np.testing.assert_allclose(found[row, : len(text)], wanted, atol=1e-5)


def test_an_embedding_is_the_unit_vector_of_the_mean(encoder: BertEncoder) -> None:
    found = BertEmbedder(encoder).embeddings(*padded(TEXTS, 48, filler=3)).numpy()
    for row, text in enumerate(TEXTS):
        mean = token_vectors(tiny_weights(), heads=4, ids=text).mean(0)
        np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_row_of_padding_alone_embeds_to_numbers(encoder: BertEncoder) -> None:
    found = BertEmbedder(encoder).embeddings(*padded([[], [2, 7, 3]], 8)).numpy()
    assert np.isfinite(found).all()


def test_computing_in_half_precision_comes_close_and_its_weights_stay_whole(encoder: BertEncoder) -> None:
    half = BertEncoder(encoder.config, np.random.RandomState(0), compute="float16")
    for variable, value in zip(half.variables, encoder.variables, strict=True):
        variable.assign(value)
    ids, mask = padded(TEXTS, 48)
    found = half(ids, mask)
    assert found.dtype == tf.float16
    assert {v.dtype for v in half.variables} == {tf.float32}
    kept = mask[..., None]
    np.testing.assert_allclose(found.numpy() * kept, encoder(ids, mask).numpy() * kept, atol=0.05)


def test_a_text_over_the_model_length_fails_rather_than_being_cut(encoder: BertEncoder) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        encoder(*padded([[5] * 65], 65))


def test_the_same_noise_drops_the_same_and_other_noise_something_else() -> None:
    model = BertClassifier(SMALL, labels=3, seed=1)
    ids, mask = padded(TEXTS, 48)
    first, again, other = (
        model.logits(ids, mask, Noise(tf.constant(seed))).numpy() for seed in ([1, 2], [1, 2], [1, 3])
    )
    assert (first == again).all()
    assert not np.allclose(first, other)
    assert not np.allclose(first, model.logits(ids, mask).numpy())


def test_every_variable_of_the_classifier_gets_a_gradient() -> None:
    model = BertClassifier(SMALL, labels=3, seed=1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.logits(*padded(TEXTS, 48), Noise(tf.constant([1, 2])))[..., 1])
    assert all(gradient is not None for gradient in tape.gradient(loss, model.trainable_variables))


def test_a_seed_gives_the_same_model_and_another_seed_another() -> None:
    one, same, other = (BertClassifier(SMALL, 2, seed).head.numpy() for seed in (1, 1, 2))
    assert (one == same).all()
    assert not (one == other).any()
