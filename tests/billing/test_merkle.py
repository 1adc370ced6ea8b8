from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from billing.merkle import inclusion_path, leaf_hash, merkle_root, root_from_path

LEAVES = st.lists(st.binary(max_size=4).map(leaf_hash), min_size=1, max_size=40)


def node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def test_the_root_of_three_leaves_is_drawn_as_in_the_standard() -> None:
    a, b, c = (leaf_hash(x) for x in (b"a", b"b", b"c"))
    assert merkle_root([a, b, c]) == node(node(a, b), c)


def test_the_root_of_nothing_is_the_hash_of_nothing() -> None:
    assert merkle_root([]) == sha256(b"").digest()


@given(LEAVES, st.data())
def test_every_leaf_proves_itself_with_its_path(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = inclusion_path(leaves, index)
    assert root_from_path(leaves[index], index, len(leaves), path) == merkle_root(leaves)
    assert len(path) <= len(leaves).bit_length()


@given(LEAVES, st.data())
def test_another_leaf_or_a_damaged_path_proves_nothing(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = inclusion_path(leaves, index)
    root = merkle_root(leaves)
    assert root_from_path(leaf_hash(b"forged"), index, len(leaves), path) != root
    assert root_from_path(leaves[index], index, len(leaves), [*path, root]) != root
    assert root_from_path(leaves[index], len(leaves), len(leaves), path) is None


@given(LEAVES, st.data())
def test_any_change_of_order_or_content_changes_the_root(leaves: list[bytes], data: st.DataObject) -> None:
    changed = data.draw(
        st.permutations(leaves) | st.just([*leaves, leaf_hash(b"more")]) | st.just(leaves[1:])
    )
    assert (merkle_root(changed) == merkle_root(leaves)) == (changed == leaves)
