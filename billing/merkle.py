"""Merkle trees as RFC 9162 draws them: one hash for many events, and a short proof for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256


def leaf_hash(content: bytes) -> bytes:
    """Hash of one leaf; its prefix keeps a leaf from passing for an inner node."""
    return sha256(b"\x00" + content).digest()


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """Root over leaf hashes in their order, 32 bytes."""
    level = list(leaves)
    if not level:
        return sha256().digest()
    while len(level) > 1:
        pairs = iter(level)
        above = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The sibling hashes from leaf `index` up to the root. Raises: IndexError: no such leaf."""
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_path(leaves[:split], index), merkle_root(leaves[split:])]
    return [*inclusion_path(leaves[split:], index - split), merkle_root(leaves[:split])]


def root_from_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a leaf and its path lead to in a tree of `count` leaves; None: the path does not fit."""
    if not 0 <= index < count:
        return None
    if count == 1:
        return leaf if not path else None
    if not path:
        return None
    split = _split(count)
    if index < split:
        left = root_from_path(leaf, index, split, path[:-1])
        return left and _node(left, path[-1])
    right = root_from_path(leaf, index - split, count - split, path[:-1])
    return right and _node(path[-1], right)


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _split(count: int) -> int:
    """The largest power of two below `count`, which is 2 or more."""
    return 1 << ((count - 1).bit_length() - 1)
