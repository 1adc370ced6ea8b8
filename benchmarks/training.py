"""Training examples a second, beside the bare Keras `fit` of the same encoder on the same batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.model_server import Row, row

_WIDTH, _HEADS, _LAYERS, _LABELS, _VOCABULARY = 128, 4, 2, 2, 8_000
_TEXTS, _BATCH, _ROUNDS = 512, 32, 2


def rows(_models_dir: Path) -> Iterator[Row]:
    """A two-layer, 128-wide BERT classifier on 512 texts of 4-128 tokens; the better of two epochs each."""
    import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

    from training.batches import Encoded, dataset, plan

    random = np.random.RandomState(0)
    lengths = random.randint(4, 129, _TEXTS)
    ids = [random.randint(5, _VOCABULARY, length).astype(np.int32) for length in lengths]
    encoded = Encoded(ids, random.randint(0, _LABELS, _TEXTS))
    groups = plan([len(text) for text in ids], _BATCH, random)
    bare = _keras_seconds(tf, dataset(encoded, groups, _BATCH))
    ours = _our_seconds(encoded)
    yield row(
        "training: a 2-layer, 128-wide BERT", _TEXTS / ours, "examples/s", bare / ours, "bare Keras fit"
    )


def _our_seconds(encoded: Any) -> float:
    """The fastest epoch, by the time between the ends of epochs: its validation, of one batch, included."""
    import tensorflow as tf

    from training.batches import Encoded
    from training.bert_classifier import BertClassifier
    from training.devices import describe
    from training.model import BertConfig
    from training.optimizer import FINE_TUNING
    from training.trainer import train

    config = BertConfig(
        _VOCABULARY, width=_WIDTH, heads=_HEADS, layers=_LAYERS, feed_forward_width=4 * _WIDTH, dropout=0.1
    )
    few = Encoded(encoded.ids[:_BATCH], encoded.labels[:_BATCH])
    ends: list[float] = []
    train(
        lambda: BertClassifier(config, _LABELS, seed=0),
        encoded,
        few,
        replace(FINE_TUNING, epochs=_ROUNDS + 1, batch_size=_BATCH, patience=_ROUNDS + 1),
        describe(tf.distribute.get_strategy(), "cpu"),
        on_epoch=lambda epoch: ends.append(time.perf_counter()),
    )
    return float(np.diff(ends).min())


def _keras_seconds(tf: Any, batches: Any) -> float:
    """The fastest epoch of the same sizes out of Keras's own layers, by `fit`."""
    keras = tf.keras
    ids = keras.Input((None,), dtype="int32")
    mask = keras.Input((None,), dtype="int32")
    places = keras.layers.Embedding(512, _WIDTH)(keras.ops.cumsum(keras.ops.ones_like(ids), 1) - 1)
    x = keras.layers.Embedding(_VOCABULARY, _WIDTH)(ids) + places
    x = keras.layers.Dropout(0.1)(keras.layers.LayerNormalization(epsilon=1e-12)(x))
    seen = keras.ops.cast(mask, "bool")[:, None, :]
    for _ in range(_LAYERS):
        attention = keras.layers.MultiHeadAttention(_HEADS, _WIDTH // _HEADS, dropout=0.1)
        y = keras.layers.Dropout(0.1)(attention(x, x, attention_mask=seen))
        x = keras.layers.LayerNormalization(epsilon=1e-12)(x + y)
        y = keras.layers.Dense(_WIDTH)(keras.layers.Dense(4 * _WIDTH, activation="gelu")(x))
        x = keras.layers.LayerNormalization(epsilon=1e-12)(x + keras.layers.Dropout(0.1)(y))
    pooled = keras.layers.Dropout(0.1)(keras.layers.Dense(_WIDTH, activation="tanh")(x[:, 0]))
    model = keras.Model([ids, mask], keras.layers.Dense(_LABELS)(pooled))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(5e-5, weight_decay=0.01, clipnorm=1.0), loss)
    feed = batches.map(lambda tokens, there, labels, weights: ((tokens, there), labels, weights))
    seconds = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        model.fit(feed, verbose=0, shuffle=False)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
