"""The subscriptions file: what is taken, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import SubscriptionsError
from billing.mail.subscriptions import Subscription, of_shard, read_subscriptions


def write(folder: Path, text: str) -> Path:
    file = folder / "subscriptions.toml"
    file.write_text(text, "utf-8")
    return file


def test_users_and_projects_are_read_with_their_addresses_and_language(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '[[subscriptions]]\nuser = "u1"\nto = ["u1@example.com"]\n'
        '[[subscriptions]]\nproject = "search"\nto = ["Search <s@example.com>", "l@example.com"]\n'
        'language = "zh"\n',
    )
    assert read_subscriptions(file) == (
        Subscription("user", "u1", ("u1@example.com",)),
        Subscription("project", "search", ("Search <s@example.com>", "l@example.com"), "zh"),
    )


def test_the_file_of_the_repository_subscribes_nobody_and_a_missing_one_too(tmp_path: Path) -> None:
    assert read_subscriptions(Path(__file__).parents[3] / "subscriptions.toml") == ()
    assert read_subscriptions(tmp_path / "none.toml") == ()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('to = ["a@example.com"]', "of a user or of a project"),
        ('user = "a"\nproject = "p"\nto = ["a@example.com"]', "of a user or of a project"),
        ('user = "a"', "to must be a list"),
        ('user = "a"\nto = []', "to must be a list"),
        ('user = "a"\nto = "a@example.com"', "to must be a list"),
        ('user = "a"\nto = ["not an address"]', "can't be used as a mail address"),
        ('user = "a"\nto = ["a@example.com\\r\\nBcc: b@example.com"]', "can't be used as a mail address"),
        ('user = "a b"\nto = ["a@example.com"]', "user must be"),
        ('user = "a"\nto = ["a@example.com"]\nlanguage = "de"', "language must be"),
        ('user = "a"\nto = ["a@example.com"]\nmail = 1', "unknown mail"),
        (
            'user = "a"\nto = ["a@example.com"]\n[[subscriptions]]\nuser = "a"\nto = ["b@example.com"]',
            "second",
        ),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place(tmp_path: Path, entry: str, said: str) -> None:
    with pytest.raises(SubscriptionsError, match=said) as refused:
        read_subscriptions(write(tmp_path, f"[[subscriptions]]\n{entry}\n"))
    assert refused.value.code == "subscriptions_invalid"
    assert "[[subscriptions]] " in str(refused.value)


@given(st.lists(st.text("abc", min_size=1), unique=True, max_size=30), st.integers(1, 7))
def test_each_subscription_is_in_exactly_one_shard(names: list[str], shards: int) -> None:
    every = [Subscription("user", name, ("a@example.com",)) for name in names]
    found = [each for shard in range(shards) for each in of_shard(every, shard, shards)]
    assert sorted(found, key=lambda each: each.name) == sorted(every, key=lambda each: each.name)
