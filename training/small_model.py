"""The review classifier: a small Transformer encoder, and beside it a linear model of hashed n-grams.

B is the batch, T the length in tokens, D the width, H the heads. Everything from token ids to probabilities
is in the graph, so whoever serves an export needs the ids and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

Tensor = Any  # TensorFlow ships no types


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model. Bits: the logarithm of the number of buckets that n-grams are hashed into."""

    vocabulary_size: int
    max_length_tokens: int = 512
    width: int = 64
    heads: int = 4
    layers: int = 1
    feed_forward_width: int = 128
    bigram_bits: int = 16
    ngram_order: int = 3
    ngram_bits: int = 20
    token_dropout: float = 0.1
    bigram_dropout: float = 0.5
    dropout: float = 0.2
    head_dropout: float = 0.3


class EncoderLayer(tf.Module):  # type: ignore[misc]  # tf is untyped
    """A pre-norm Transformer layer (https://arxiv.org/abs/1706.03762, https://arxiv.org/abs/2002.04745)."""

    def __init__(self, config: ModelConfig, random: np.random.RandomState) -> None:
        super().__init__()
        width, inner = config.width, config.feed_forward_width
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm, self.attention_shift = _ones(width, "scale"), _zeros(width, "shift")
        self.query_key_value = _weight(random, width, 3 * width)
        self.query_key_value_bias = _zeros(3 * width, "bias")
        self.output, self.output_bias = _weight(random, width, width), _zeros(width, "bias")
        self.inner_norm, self.inner_shift = _ones(width, "scale"), _zeros(width, "shift")
        self.inner, self.inner_bias = _weight(random, width, inner), _zeros(inner, "bias")
        self.outer, self.outer_bias = _weight(random, inner, width), _zeros(width, "bias")

    def __call__(self, x: Tensor, mask: Tensor, training: bool) -> Tensor:
        """x: (B, T, D), mask: (B, T) of 0 and 1 → (B, T, D)."""
        x += _drop(self._attend(x, mask), self.dropout, training)
        y = _normalise(x, self.inner_norm, self.inner_shift)
        y = tf.nn.gelu(tf.matmul(y, self.inner) + self.inner_bias)
        return x + _drop(tf.matmul(y, self.outer) + self.outer_bias, self.dropout, training)

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = tf.shape(x)[0], tf.shape(x)[1], x.shape[-1]
        x = _normalise(x, self.attention_norm, self.attention_shift)
        x = tf.matmul(x, self.query_key_value) + self.query_key_value_bias  # (B, T, 3D)
        x = tf.reshape(x, [batch, length, 3, self.heads, width // self.heads])
        query, key, value = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))  # each (B, H, T, D/H)
        scores = tf.matmul(query, key, transpose_b=True) / math.sqrt(width // self.heads)  # (B, H, T, T)
        scores += (mask[:, None, None, :] - 1.0) * 1e9
        mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), value), [0, 2, 1, 3])  # (B, T, H, D/H)
        return tf.matmul(tf.reshape(mixed, [batch, length, width]), self.output) + self.output_bias


class ReviewClassifier(tf.Module):  # type: ignore[misc]  # tf is untyped
    """Two classifiers of one review, each trained on its own loss, and the mixture of their logits.

    The encoder is BERT's (https://arxiv.org/abs/1810.04805), but each token is embedded together with its
    hashed bigram: without pretraining, attention does not find the words in so few texts.
    The linear half is a bag of hashed 1- to 3-grams, each scaled by how much more often it occurs in one
    class ("Baselines and Bigrams", https://aclanthology.org/P12-2018): it knows the rare ones by heart.
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        random = np.random.RandomState(seed)  # its stream is frozen, so a seed means the same everywhere
        width = config.width
        self.config = config
        self.token_embedding = _embedding(random, config.vocabulary_size, width, 0.05)
        self.position_embedding = _embedding(random, config.max_length_tokens, width, 0.02)
        self.bigram_embedding = _embedding(random, 1 << config.bigram_bits, width, 0.05)
        self.layers = [EncoderLayer(config, random) for _ in range(config.layers)]
        self.head, self.head_bias = _weight(random, 2 * width, 1), _zeros(1, "bias")
        buckets = 1 << config.ngram_bits
        self.ngram_ratio = tf.Variable(tf.zeros(buckets), trainable=False, name="ngram_ratio")
        self.ngram_weight, self.ngram_bias = _zeros(buckets, "ngram_weight"), _zeros(1, "bias")
        # How much of the encoder's logit, of the n-grams' logit, and of 1 the mixture holds.
        self.mixture = tf.Variable([0.5, 0.5, 0.0], trainable=False, name="mixture")

    def encoder_variables(self) -> list[Tensor]:
        """What AdamW trains: all but the linear half."""
        linear = {self.ngram_weight.ref(), self.ngram_bias.ref()}
        return [v for v in self.trainable_variables if v.ref() not in linear]

    def encoder_logit(self, ids: Tensor, mask: Tensor, training: bool) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B,), positive for the second label. Training drops out."""
        ids *= mask  # what lies under padding must not matter
        if training and self.config.token_dropout:
            dropped = tf.random.uniform(tf.shape(ids)) < self.config.token_dropout
            ids = tf.where(dropped, mask, ids)  # id 1 is [UNK], which so learns to stand for any token
        present = tf.cast(mask, tf.float32)  # (B, T)
        bigrams = _buckets(_ngram_keys(ids, 2, self.config.vocabulary_size), self.config.bigram_bits)
        pairs = tf.gather(self.bigram_embedding, bigrams)  # (B, T, D)
        if training:
            # Whole bigrams go, unscaled: else the rare ones are learnt by heart, and nothing else is.
            kept = tf.random.uniform(tf.shape(ids)) >= self.config.bigram_dropout
            pairs *= tf.cast(kept, tf.float32)[..., None]
        x = tf.gather(self.token_embedding, ids) + pairs + self.position_embedding[: tf.shape(ids)[1]]
        x = _drop(x, self.config.dropout, training)
        for layer in self.layers:
            x = layer(x, present, training)
        kept = present[..., None]
        mean = tf.reduce_sum(x * kept, 1) / tf.maximum(tf.reduce_sum(kept, 1), 1.0)
        pooled = tf.concat([mean, tf.reduce_max(x + (kept - 1.0) * 1e9, 1)], -1)  # (B, 2D)
        pooled = _drop(pooled, self.config.head_dropout, training)
        return (tf.matmul(pooled, self.head) + self.head_bias)[:, 0]

    def ngram_logit(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B,): a linear model of a unit vector of scaled n-grams."""
        buckets, present = self.ngram_buckets(ids, mask)
        scale = tf.gather(self.ngram_ratio, buckets) * tf.cast(present, tf.float32)  # (B, N)
        length = tf.sqrt(tf.reduce_sum(scale * scale, 1) + 1e-6)
        return tf.reduce_sum(tf.gather(self.ngram_weight, buckets) * scale, 1) / length + self.ngram_bias

    def ngram_buckets(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids, mask: int32 (B, T) → each n-gram's bucket, and whether it ends inside the text: (B, N)."""
        ids *= mask
        buckets, present = [], []
        for n in range(1, self.config.ngram_order + 1):
            buckets.append(_buckets(_ngram_keys(ids, n, self.config.vocabulary_size), self.config.ngram_bits))
            present.append(_ahead(mask, n - 1))
        return tf.concat(buckets, 1), tf.concat(present, 1)  # N = T x order

    def probabilities(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B, 2), in the order of LABELS; rows sum to 1."""
        encoder, ngram, constant = tf.unstack(self.mixture)
        logit = encoder * self.encoder_logit(ids, mask, training=False)
        logit += ngram * self.ngram_logit(ids, mask) + constant
        return tf.sigmoid(tf.stack([-logit, logit], 1))

    def answers(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """ids, mask: int32 (B, T) → the outputs of an export."""
        return {"probabilities": self.probabilities(ids, mask)}

    def parameter_count(self) -> int:
        """Numbers that training sets, the ratios of the n-grams and the mixture among them."""
        return sum(int(np.prod(v.shape)) for v in self.variables)


def _ngram_keys(ids: Tensor, n: int, vocabulary_size: int) -> Tensor:
    """A number for the n tokens from each place on, different for different ones: uint64 (B, T)."""
    key = tf.zeros_like(ids, tf.uint64)
    for ahead in range(n):
        key = key * vocabulary_size + tf.cast(_ahead(ids, ahead), tf.uint64)
    return key


def _ahead(values: Tensor, places: int) -> Tensor:
    """Each place gets the value so many places on, and 0 beyond the end: (B, T)."""
    return tf.pad(values[:, places:], [[0, 0], [0, tf.minimum(places, tf.shape(values)[1])]])


def _buckets(keys: Tensor, bits: int) -> Tensor:
    """Multiplicative hashing (Knuth, TAOCP 6.4): the top bits of key x 2^64 / golden ratio. int32 (B, T)."""
    product = keys * tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(product, tf.constant(64 - bits, tf.uint64)), tf.int32)


def _normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-6) * scale + shift


def _drop(x: Tensor, rate: float, training: bool) -> Tensor:
    return tf.nn.dropout(x, rate) if training and rate else x


def _embedding(random: np.random.RandomState, rows: int, width: int, deviation: float) -> Tensor:
    return tf.Variable(random.normal(0, deviation, (rows, width)).astype(np.float32), name="embedding")


def _weight(random: np.random.RandomState, rows: int, columns: int) -> Tensor:
    deviation = 1 / math.sqrt(rows)
    return tf.Variable(random.normal(0, deviation, (rows, columns)).astype(np.float32), name="weight")


def _zeros(size: int, name: str) -> Tensor:
    return tf.Variable(tf.zeros(size), name=name)


def _ones(size: int, name: str) -> Tensor:
    return tf.Variable(tf.ones(size), name=name)
