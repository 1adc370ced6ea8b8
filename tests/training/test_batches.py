"""Batches: every text once and whole, beside others of like length, split among replicas without a change."""

from __future__ import annotations

import numpy as np
import pytest

from training.batches import BUCKETS, NONE, Encoded, bucket, dataset, in_order, plan


def texts(count: int, longest: int = 200) -> Encoded:
    random = np.random.RandomState(0)
    ids = [random.randint(1, 99, random.randint(2, longest)).astype(np.int32) for _ in range(count)]
    return Encoded(ids, random.randint(0, 3, count))


@pytest.mark.parametrize("seed", [None, 1])
def test_a_plan_holds_every_text_once_in_as_few_batches_as_can_be(seed: int | None) -> None:
    encoded = texts(300)
    random = None if seed is None else np.random.RandomState(seed)
    groups = plan([len(i) for i in encoded.ids], 32, random)
    assert sorted(np.concatenate(groups)) == list(range(300))
    assert sorted(map(len, groups)) == [300 % 32, *[32] * (300 // 32)]


def test_a_plan_puts_texts_of_like_length_together_and_is_another_each_epoch() -> None:
    lengths = [len(i) for i in texts(2000).ids]
    groups = plan(lengths, 32, np.random.RandomState(1))
    padded = sum(bucket(max(lengths[i] for i in group)) * len(group) for group in groups)
    assert padded < 1.25 * sum(lengths)
    again = plan(lengths, 32, np.random.RandomState(1))
    assert all((a == b).all() for a, b in zip(groups, again, strict=True))
    other = plan(lengths, 32, np.random.RandomState(2))
    assert not all(len(a) == len(b) and (a == b).all() for a, b in zip(groups, other, strict=True))


def test_batches_hold_the_texts_whole_and_are_padded_to_a_bucket() -> None:
    encoded = texts(70)
    groups = plan([len(i) for i in encoded.ids], 32)
    for group, (ids, mask, labels, weights) in zip(groups, dataset(encoded, groups, 32), strict=True):
        assert ids.shape == mask.shape
        assert ids.shape[1] in BUCKETS
        for row, text in enumerate(group):
            length = int(mask.numpy()[row].sum())
            assert ids.numpy()[row, :length].tolist() == encoded.ids[text].tolist()
            assert not ids.numpy()[row, length:].any()
            assert labels.numpy()[row] == encoded.labels[text]
        assert weights.numpy().sum() == pytest.approx(1)
        assert not mask.numpy()[len(group) :].any()
        assert not weights.numpy()[len(group) :].any()


def test_a_text_longer_than_every_bucket_stays_whole() -> None:
    encoded = Encoded([np.arange(1, 701, dtype=np.int32)], np.array([1]))
    [(chosen, ids, mask)] = in_order(encoded)
    assert (chosen.tolist(), ids.shape, mask.sum()) == ([0], (1, 700), 700)


def test_two_workers_of_two_replicas_get_the_batches_of_one_device_between_them() -> None:
    encoded = texts(50)
    groups = plan([len(i) for i in encoded.ids], 16, np.random.RandomState(0))
    whole = [tuple(part.numpy() for part in batch) for batch in dataset(encoded, groups, 16)]
    first, second = (list(dataset(encoded, groups, 16, 4, mine)) for mine in (slice(0, 2), slice(2, 4)))
    for step, batch in enumerate(whole):
        shares = [*first[2 * step : 2 * step + 2], *second[2 * step : 2 * step + 2]]
        for part, wanted in enumerate(batch):
            assert (np.concatenate([share[part].numpy() for share in shares]) == wanted).all()


def test_what_fills_a_batch_up_is_no_text() -> None:
    assert NONE < 0
