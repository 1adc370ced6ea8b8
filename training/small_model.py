"""The small classifier: an encoder that learns from scratch, and beside it a linear model of hashed n-grams.

B is the batch, T the length in tokens, D the width, K the labels, C the columns of numbers that tell them
apart. Everything from token ids to probabilities is in the graph, so whoever serves an export needs the ids
and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from training.classifier import Array, Classifier
from training.model import (
    BertConfig,
    EncoderLayer,
    Noise,
    Tensor,
    drop,
    embedding,
    weight,
    zeros,
)


@dataclass(frozen=True)
class SmallConfig:
    """The sizes of a model. Bits: the logarithm of the number of buckets that n-grams are hashed into."""

    vocabulary_size: int
    labels: int = 2
    max_length_tokens: int = 512
    width: int = 64
    heads: int = 2
    layers: int = 1
    feed_forward_width: int = 128
    bigram_bits: int = 16
    ngram_order: int = 3
    ngram_bits: int = 20
    token_dropout: float = 0.1
    bigram_dropout: float = 0.5
    dropout: float = 0.2
    head_dropout: float = 0.3
    window_tokens: int = 128  # of a longer text, the encoder learns from so many at a time

    @property
    def columns(self) -> int:
        """Numbers that tell K labels apart."""
        return 1 if self.labels == 2 else self.labels


class SmallClassifier(Classifier):
    """Two classifiers of one text, each trained on its own loss, and the mixture of their logits.

    The encoder is BERT's (https://arxiv.org/abs/1810.04805), but each token is embedded together with its
    hashed bigram: without pretraining, attention does not find the words in so few texts.
    The linear half is a bag of hashed 1- to 3-grams, each scaled by how much more often it occurs in one
    class ("Baselines and Bigrams", https://aclanthology.org/P12-2018): it knows the rare ones by heart.
    """

    def __init__(self, config: SmallConfig, seed: int) -> None:
        super().__init__(parts=2, labels=config.labels)
        random = np.random.RandomState(seed)  # its stream is frozen, so a seed means the same everywhere
        width = config.width
        self.config = config
        self.token_embedding = embedding(random, config.vocabulary_size, width, 0.05)
        self.position_embedding = embedding(random, config.max_length_tokens, width)
        self.bigram_embedding = embedding(random, 1 << config.bigram_bits, width, 0.05)
        sizes = BertConfig(
            vocabulary_size=config.vocabulary_size,
            width=width,
            heads=config.heads,
            feed_forward_width=config.feed_forward_width,
            dropout=config.dropout,
            attention_dropout=0.0,
        )
        self.layers = [EncoderLayer(sizes, random) for _ in range(config.layers)]
        self.head, self.head_bias = weight(random, 2 * width, config.columns), zeros(config.columns, "bias")
        table = [1 << config.ngram_bits, config.columns]
        self.ngram_ratio = tf.Variable(tf.zeros(table), trainable=False, name="ngram_ratio")
        self.ngram_weight = tf.Variable(tf.zeros(table), name="ngram_weight")
        self.ngram_bias = zeros(config.columns, "bias")

    def sparse_variables(self) -> list[Tensor]:
        """The linear half."""
        return [self.ngram_weight, self.ngram_bias]

    def logits(self, ids: Tensor, mask: Tensor, noise: Noise | None = None) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B, 2, K): the encoder's, and the n-grams'."""
        # The halves share no variable, so each learns from its own loss only: neither leans on the other.
        both = tf.stack([self.encoder_columns(ids, mask, noise), self.ngram_columns(ids, mask)], 1)
        if self.config.labels > 2:
            return both
        return tf.concat([tf.zeros_like(both), both], -1)

    def encoder_columns(self, ids: Tensor, mask: Tensor, noise: Noise | None = None) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B, C)."""
        config = self.config
        positions = self.position_embedding[: tf.shape(ids)[1]]
        if noise is not None:
            ids, mask, positions = self._window(ids, mask, positions, noise)
        ids *= mask  # what lies under padding must not matter
        if noise is not None and config.token_dropout:
            dropped = noise.uniform(tf.shape(ids)) < config.token_dropout
            ids = tf.where(dropped, mask, ids)  # id 1 is [UNK], which so learns to stand for any token
        bigrams = _buckets(_ngram_keys(ids, 2, config.vocabulary_size), config.bigram_bits)
        pairs = tf.gather(self.bigram_embedding, bigrams)  # (B, T, D)
        if noise is not None:
            # Whole bigrams go, unscaled: else the rare ones are learnt by heart, and nothing else is.
            kept = noise.uniform(tf.shape(ids)) >= config.bigram_dropout
            pairs *= tf.cast(kept, tf.float32)[..., None]
        x = tf.gather(self.token_embedding, ids) + pairs + positions
        x = drop(x, config.dropout, noise)
        for layer in self.layers:
            x = layer(x, mask, noise)
        present = tf.cast(mask, tf.float32)[..., None]  # (B, T, 1)
        mean = tf.reduce_sum(x * present, 1) / tf.maximum(tf.reduce_sum(present, 1), 1.0)
        pooled = tf.concat([mean, tf.reduce_max(x + (present - 1.0) * 1e9, 1)], -1)  # (B, 2D)
        return tf.matmul(drop(pooled, config.head_dropout, noise), self.head) + self.head_bias

    def _window(self, ids: Tensor, mask: Tensor, positions: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        """The same stretch of all three, where noise says: what attention costs grows with T squared."""
        size = tf.minimum(tf.shape(ids)[1], self.config.window_tokens)
        shortest = tf.reduce_min(tf.reduce_sum(mask, 1))  # of which a token must be left
        spare = tf.maximum(tf.minimum(tf.shape(ids)[1] - size, shortest - 1), 0)
        start = tf.cast(noise.uniform([]) * tf.cast(spare + 1, tf.float32), tf.int32)
        places = start + tf.range(size)  # gathered, since XLA slices at constants only
        return tf.gather(ids, places, axis=1), tf.gather(mask, places, axis=1), tf.gather(positions, places)

    def ngram_columns(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B, C): a linear model of a unit vector of scaled n-grams."""
        buckets, present = self.ngram_buckets(ids, mask)
        scale = tf.gather(self.ngram_ratio, buckets) * tf.cast(present, tf.float32)[..., None]  # (B, N, C)
        length = tf.sqrt(tf.reduce_sum(scale * scale, 1) + 1e-6)  # (B, C)
        return tf.reduce_sum(tf.gather(self.ngram_weight, buckets) * scale, 1) / length + self.ngram_bias

    def ngram_buckets(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids, mask: int32 (B, T) → each n-gram's bucket, and whether it ends inside the text: (B, N)."""
        ids *= mask
        buckets, present = [], []
        for n in range(1, self.config.ngram_order + 1):
            buckets.append(_buckets(_ngram_keys(ids, n, self.config.vocabulary_size), self.config.ngram_bits))
            present.append(_ahead(mask, n - 1))
        return tf.concat(buckets, 1), tf.concat(present, 1)  # N = T x order

    def prepare(self, batches: Iterable[tuple[Array, Array, Array]]) -> None:
        """Set each bucket's ratio: the logarithm of how much likelier texts of a label have its n-grams."""
        ids = tf.TensorSpec([None, None], tf.int32)
        find = tf.function(self.ngram_buckets, input_signature=[ids, ids], autograph=False)
        texts = np.zeros((self.config.labels, 1 << self.config.ngram_bits), np.float32)
        for tokens, mask, labels in batches:
            buckets, present = (tensor.numpy() for tensor in find(tokens, mask))
            for row, label in enumerate(labels):
                texts[label, np.unique(buckets[row][present[row] == 1])] += 1
        columns = []
        for label in range(self.config.labels)[-self.config.columns :]:
            those = texts[label] + 1  # add-one smoothing
            others = texts.sum(0) - texts[label] + 1
            columns.append(np.log(those / those.sum()) - np.log(others / others.sum()))
        self.ngram_ratio.assign(np.stack(columns, 1))


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
