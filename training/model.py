"""BERT: the encoder, and a head that embeds. bert_classifier.py has the head that classifies.

B is the batch, T the length in tokens, D the width, H the heads, K the labels. Masks are 1 for a token and
0 for padding. Weights are float32; `compute` is the type that is computed in, save norms and softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

Tensor = Any  # TensorFlow ships no types


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT; the defaults are those of BERT-base."""

    vocabulary_size: int
    max_length_tokens: int = 512
    width: int = 768
    heads: int = 12
    layers: int = 12
    feed_forward_width: int = 3072
    token_types: int = 2
    activation: str = "gelu"  # one of ACTIVATIONS
    norm_epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1


ACTIVATIONS = {
    "gelu": tf.nn.gelu,
    "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
    "relu": tf.nn.relu,
}


class Noise:
    """What dropout draws: it follows from the seed and the place alone, so a resumed run repeats it."""

    def __init__(self, seed: Tensor) -> None:
        """seed: int32 (2,), another one for each step and replica."""
        self._seed = seed
        self._places = 0

    def uniform(self, shape: Tensor) -> Tensor:
        """float32 in [0, 1); other numbers at each call of one tracing, the same in each tracing."""
        self._places += 1
        seed = tf.random.experimental.stateless_fold_in(self._seed, self._places)
        return tf.random.stateless_uniform(shape, seed)


class EncoderLayer(tf.Module):  # type: ignore[misc]  # tf is untyped
    """Attention and a feed-forward part, each added to its input and normalised (https://arxiv.org/abs/1706.03762)."""

    def __init__(self, config: BertConfig, random: np.random.RandomState) -> None:
        super().__init__()
        width, inner = config.width, config.feed_forward_width
        self.heads, self.epsilon = config.heads, config.norm_epsilon
        self.dropout, self.attention_dropout = config.dropout, config.attention_dropout
        self.activation = ACTIVATIONS[config.activation]
        self.query_key_value = weight(random, width, 3 * width)
        self.query_key_value_bias = zeros(3 * width, "bias")
        self.output, self.output_bias = weight(random, width, width), zeros(width, "bias")
        self.output_scale, self.output_shift = ones(width, "scale"), zeros(width, "shift")
        self.inner, self.inner_bias = weight(random, width, inner), zeros(inner, "bias")
        self.outer, self.outer_bias = weight(random, inner, width), zeros(width, "bias")
        self.outer_scale, self.outer_shift = ones(width, "scale"), zeros(width, "shift")

    def __call__(self, x: Tensor, mask: Tensor, noise: Noise | None) -> Tensor:
        """x: (B, T, D), mask: (B, T) → (B, T, D)."""
        y = drop(self._attend(x, mask, noise), self.dropout, noise)
        x = normalise(x + y, self.output_scale, self.output_shift, self.epsilon)
        y = self.activation(dense(x, self.inner, self.inner_bias))  # (B, T, inner)
        y = drop(dense(y, self.outer, self.outer_bias), self.dropout, noise)
        return normalise(x + y, self.outer_scale, self.outer_shift, self.epsilon)

    def _attend(self, x: Tensor, mask: Tensor, noise: Noise | None) -> Tensor:
        batch, length, width = tf.shape(x)[0], tf.shape(x)[1], x.shape[-1]
        x = dense(x, self.query_key_value, self.query_key_value_bias)  # (B, T, 3D)
        x = tf.reshape(x, [batch, length, 3, self.heads, width // self.heads])
        query, key, value = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))  # each (B, H, T, D/H)
        query /= math.sqrt(width // self.heads)  # and not the scores, of which there are many more
        scores = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32)  # (B, H, T, T)
        scores += (tf.cast(mask, tf.float32)[:, None, None, :] - 1.0) * 1e9
        shares = drop(tf.cast(tf.nn.softmax(scores), x.dtype), self.attention_dropout, noise)
        mixed = tf.transpose(tf.matmul(shares, value), [0, 2, 1, 3])  # (B, T, H, D/H)
        return dense(tf.reshape(mixed, [batch, length, width]), self.output, self.output_bias)


class BertEncoder(tf.Module):  # type: ignore[misc]  # tf is untyped
    """BERT (https://arxiv.org/abs/1810.04805): a vector for each token, which has seen all the others."""

    def __init__(self, config: BertConfig, random: np.random.RandomState, compute: str = "float32") -> None:
        super().__init__()
        width = config.width
        self.config, self.compute = config, compute
        self.token_embedding = embedding(random, config.vocabulary_size, width)
        self.position_embedding = embedding(random, config.max_length_tokens, width)
        self.type_embedding = embedding(random, config.token_types, width)
        self.embedding_scale, self.embedding_shift = ones(width, "scale"), zeros(width, "shift")
        self.layers = [EncoderLayer(config, random) for _ in range(config.layers)]

    def __call__(self, ids: Tensor, mask: Tensor, noise: Noise | None = None) -> Tensor:
        """ids, mask: int32 (B, T) → (B, T, D). Without noise nothing is dropped out.

        A text over the model's length fails. All tokens are of the first type: there is one text, not a pair.
        """
        ids *= mask  # what lies under padding must not matter
        x = tf.gather(self.token_embedding, ids) + self.type_embedding[0]  # (B, T, D)
        x += self.position_embedding[: tf.shape(ids)[1]]
        x = normalise(x, self.embedding_scale, self.embedding_shift, self.config.norm_epsilon)
        x = drop(tf.cast(x, self.compute), self.config.dropout, noise)
        for layer in self.layers:
            x = layer(x, mask, noise)
        return x


class BertEmbedder(tf.Module):  # type: ignore[misc]  # tf is untyped
    """The mean of a text's token vectors, as a unit vector (https://arxiv.org/abs/1908.10084)."""

    def __init__(self, encoder: BertEncoder) -> None:
        super().__init__()
        self.config = encoder.config
        self.encoder = encoder

    def embeddings(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B, D), each row of length 1."""
        x = tf.cast(self.encoder(ids, mask), tf.float32)  # (B, T, D)
        kept = tf.cast(mask, tf.float32)[..., None]  # (B, T, 1)
        mean = tf.reduce_sum(x * kept, 1) / tf.maximum(tf.reduce_sum(kept, 1), 1e-9)
        return mean / tf.maximum(tf.norm(mean, axis=1, keepdims=True), 1e-12)

    def answers(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """ids, mask: int32 (B, T) → the outputs of an export."""
        return {"embeddings": self.embeddings(ids, mask)}


def parameter_count(model: tf.Module) -> int:
    """Numbers in all variables of a model."""
    return sum(int(np.prod(v.shape)) for v in model.variables)


def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., I) times (I, O) plus (O,) → (..., O), in the type of x."""
    return tf.matmul(x, tf.cast(weight, x.dtype)) + tf.cast(bias, x.dtype)


def normalise(x: Tensor, scale: Tensor, shift: Tensor, epsilon: float) -> Tensor:
    """Layer norm (https://arxiv.org/abs/1607.06450) of (..., D), computed in float32."""
    wide = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(wide, -1, keepdims=True)
    return tf.cast((wide - mean) * tf.math.rsqrt(variance + epsilon) * scale + shift, x.dtype)


def drop(x: Tensor, rate: float, noise: Noise | None) -> Tensor:
    """Dropout (https://jmlr.org/papers/v15/srivastava14a.html), if there is noise to drop by."""
    if noise is None or not rate:
        return x
    return tf.where(noise.uniform(tf.shape(x)) >= rate, x / (1.0 - rate), tf.zeros_like(x))


def embedding(random: np.random.RandomState, rows: int, width: int, deviation: float = 0.02) -> Tensor:
    """A table to look rows up in: (rows, D)."""
    return tf.Variable(random.normal(0, deviation, (rows, width)).astype(np.float32), name="embedding")


def weight(random: np.random.RandomState, rows: int, columns: int) -> Tensor:
    """A matrix that keeps the size of what it is multiplied with."""
    deviation = 1 / math.sqrt(rows)
    return tf.Variable(random.normal(0, deviation, (rows, columns)).astype(np.float32), name="weight")


def zeros(size: int, name: str) -> Tensor:
    """A vector that begins as 0."""
    return tf.Variable(tf.zeros(size), name=name)


def ones(size: int, name: str) -> Tensor:
    """A vector that begins as 1."""
    return tf.Variable(tf.ones(size), name=name)
