"""Quotas that are switched off."""

from __future__ import annotations

from collections.abc import Mapping

from serving.access.identity import Caller
from serving.quotas.contract import Reservation, Standing


class Unlimited:
    """Holds nothing and refuses nobody."""

    def reserve(self, caller: Caller, model: str, most_tokens: int) -> Reservation:
        """See `serving.quotas.contract.Quotas`."""
        return _NOTHING

    def count(self, caller: Caller) -> None:
        """See `serving.quotas.contract.Quotas`."""

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """None."""
        return {}

    def standing(self, caller: Caller) -> Mapping[str, Standing]:
        """None."""
        return {}

    def reserved_tokens(self) -> int:
        """None."""
        return 0

    def problem(self) -> str | None:
        """None."""
        return None

    def close(self) -> None:
        """Nothing to let go of."""


class _Nothing:
    def settle(self, total_tokens: int) -> None:
        pass

    def release(self) -> None:
        pass

    def renew(self) -> None:
        pass


_NOTHING = _Nothing()
