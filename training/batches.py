"""Texts as batches: planned in numpy, so that an epoch can be repeated, made by tf.data while others compute.

B is the batch, T the length in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Iterator, Sequence

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.dataset import Dataset, Split, check_splits

Array = NDArray[Any]
# Lengths that batches are padded to: few, because XLA compiles for each.
BUCKETS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
NONE = -1  # in place of a text, where a batch is not full


@dataclass(frozen=True)
class Encoded:
    """A split as token ids: each text (T,) with the tokenizer's special tokens, and its label."""

    ids: Sequence[NDArray[np.int32]]
    labels: NDArray[np.int64]


def encode(tokenizer: Tokenizer, split: Split) -> Encoded:
    """Token ids of a split, whole."""
    ids = [np.array(e.ids, np.int32) for e in tokenizer.encode_batch(list(split.texts))]
    return Encoded(ids, np.array(split.labels, np.int64))


def encode_all(tokenizer: Tokenizer, texts: Dataset, longest: int) -> tuple[Dataset, list[Encoded]]:
    """The data without the texts that have more than `longest` tokens, counted as too long; and their ids.

    Nothing is cut. Raises: TrainingError: `too_few_texts`.
    """
    found = [encode(tokenizer, split) for split in texts.splits]
    fitting = [[len(ids) <= longest for ids in split.ids] for split in found]
    if all(map(all, fitting)):
        return texts, found
    splits, encoded = [], []
    for split, ids, fits in zip(texts.splits, found, fitting):
        kept = [n for n, fit in enumerate(fits) if fit]
        splits.append(Split(tuple(split.texts[n] for n in kept), tuple(split.labels[n] for n in kept)))
        encoded.append(Encoded([ids.ids[n] for n in kept], ids.labels[kept]))
    sizes = {name: len(split.texts) for name, split in zip(("train", "validation", "test"), splits)}
    counts = {**texts.counts, **sizes, "too_long": sum(fits.count(False) for fits in fitting)}
    train, validation, test = splits
    whole = replace(texts, train=train, validation=validation, test=test, counts=counts)
    check_splits(whole)
    return whole, encoded


def bucket(length: int) -> int:
    """The length that a text is padded to at least."""
    return next((bound for bound in BUCKETS if bound >= length), length)


def plan(lengths: Sequence[int], size: int, random: np.random.RandomState | None = None) -> list[Array]:
    """Which texts go together: every text once, `size` in each group but one, of one bucket if possible.

    Texts that are left of a bucket go with the next longer ones. Shuffled, if there is a `random`.
    """
    bounds = np.array([bucket(length) for length in lengths])
    groups: list[Array] = []
    waiting = np.zeros(0, np.int64)
    for bound in np.unique(bounds):
        members = np.flatnonzero(bounds == bound)
        members = np.concatenate([waiting, members if random is None else random.permutation(members)])
        whole = len(members) // size * size
        groups.extend(members[:whole].reshape(-1, size))
        waiting = members[whole:]
    if len(waiting):
        groups.append(waiting)
    return groups if random is None else [groups[i] for i in random.permutation(len(groups))]


def dataset(
    encoded: Encoded, groups: Sequence[Array], size: int, replicas: int = 1, mine: slice = slice(None)
) -> Any:
    """A tf.data.Dataset of ids, mask (B, T), labels and weights (B,): of each group a batch for each replica.

    A group is filled up to `size` and split among `replicas`, of which only `mine` are made. The weights of a
    group sum to 1 over all replicas; what fills it up has none.
    """
    index = np.full((len(groups), size), NONE, np.int64)
    for row, group in enumerate(groups):
        index[row, : len(group)] = group
    bounds = [bucket(max(len(encoded.ids[i]) for i in group)) for group in groups]
    shares = index.reshape(len(groups), replicas, size // replicas)[:, mine]
    local = shares.shape[1]
    ids = tf.RaggedTensor.from_row_lengths(
        np.concatenate(encoded.ids) if len(encoded.ids) else np.zeros(0, np.int32),
        np.array([len(text) for text in encoded.ids], np.int64),
    )
    labels = tf.constant(encoded.labels, tf.int32)

    def make(chosen: Any, bound: Any, share: Any) -> tuple[Any, Any, Any, Any]:
        there = tf.cast(chosen != NONE, tf.int32)  # (B,)
        at = tf.maximum(chosen, 0)
        rows = tf.gather(ids, at)
        mask = tf.sequence_mask(rows.row_lengths(), bound, tf.int32) * there[:, None]
        padded = rows.to_tensor(shape=[size // replicas, None])
        padded = tf.pad(padded, [[0, 0], [0, tf.maximum(bound - tf.shape(padded, tf.int64)[1], 0)]])
        return padded[:, :bound] * mask, mask, tf.gather(labels, at), tf.cast(there, tf.float32) * share

    steps = tf.data.Dataset.from_tensor_slices(
        (
            shares.reshape(-1, size // replicas),
            np.repeat(np.array(bounds, np.int64), local),
            np.repeat(np.array([1 / len(group) for group in groups], np.float32), local),
        )
    )
    return steps.map(make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def in_order(encoded: Encoded, size: int = 128) -> Iterator[tuple[Array, Array, Array]]:
    """All texts, shortest first: indices (n,), and ids and mask (B, T) whose first n rows are theirs."""
    size = max(1, min(size, len(encoded.ids)))
    groups = plan([len(text) for text in encoded.ids], size)
    for group, (ids, mask, _, _) in zip(groups, dataset(encoded, groups, size)):
        yield group, ids.numpy(), mask.numpy()
