"""Who wants a daily mail of their own: users and project owners, read from a file."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from billing.errors import MailError, SubscriptionsError
from billing.mail.day import check_address
from billing.reports.words import Language
from billing.selection import OwnerKind
from billing.strict_toml import Entry, read


@dataclass(frozen=True, slots=True)
class Subscription:
    """Mail about one user's or project's days, to these addresses."""

    kind: OwnerKind
    name: str
    to: tuple[str, ...]
    language: Language | None = None  # None: that of the settings

    def shard(self, shards: int) -> int:
        """Which of so many shards it is in; the same on every machine."""
        return zlib.crc32(f"{self.kind}/{self.name}".encode()) % shards


def read_subscriptions(file: Path) -> tuple[Subscription, ...]:
    """Read a subscriptions file; none when there is no such file.

    Raises: SubscriptionsError: not TOML, or an entry is incomplete, misspelt, given twice, or has an address
        that no mail server takes (code subscriptions_invalid).
    """
    if not file.exists():
        return ()
    document = read(file, "subscriptions", SubscriptionsError)
    document.only("subscriptions")
    found: dict[tuple[str, str], Subscription] = {}
    for entry in document.entries("subscriptions"):
        subscription = _subscription(entry)
        key = (subscription.kind, subscription.name)
        if key in found:
            entry.refuse(f"a second one of {subscription.kind} {subscription.name}; name all in its `to`")
        found[key] = subscription
    return tuple(found.values())


def of_shard(subscriptions: Iterable[Subscription], shard: int, shards: int) -> list[Subscription]:
    """Those of one shard: each is in exactly one."""
    return [each for each in subscriptions if each.shard(shards) == shard]


def _subscription(entry: Entry) -> Subscription:
    entry.only("user", "project", "to", "language")
    if ("user" in entry.table) == ("project" in entry.table):
        entry.refuse("a subscription is of a user or of a project")
    kind: OwnerKind = "user" if "user" in entry.table else "project"
    to = entry.table.get("to")
    if not isinstance(to, list) or not to or not all(isinstance(each, str) for each in to):
        entry.refuse('to must be a list of addresses such as ["someone@example.com"]')
    try:
        for address in to:
            check_address(address)
    except MailError as error:
        entry.refuse(str(error))
    language = entry.table.get("language")
    if language is not None and language not in get_args(Language):
        entry.refuse('language must be "en" or "zh"')
    return Subscription(kind, entry.name(kind), tuple(to), cast("Language | None", language))
