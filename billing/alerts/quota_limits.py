"""The quotas of users and projects, as the acts in the audit chain tell them: limits set, overage granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.acts import KIND
from billing.tables import audit_records

USER_DAY, PROJECT_MONTH = "user_day_tokens", "project_month_tokens"  # as the gateway names them


@dataclass(frozen=True)
class QuotaLimits:
    """The settings' limits, those set for one subject, and what is granted on top now."""

    defaults: Mapping[str, int]
    own: dict[tuple[str, str], int] = field(default_factory=dict)
    granted: dict[tuple[str, str], int] = field(default_factory=dict)

    def of(self, quota: str, subject: str) -> int:
        """How many tokens a user's day, or a project's month, may have."""
        key = (quota, subject)
        return self.own.get(key, self.defaults[quota]) + self.granted.get(key, 0)


def quota_limits(connection: Connection, defaults: Mapping[str, int], now: datetime) -> QuotaLimits:
    """The quotas at a moment; acts that ingest has not chained yet are not known."""
    own: dict[tuple[str, str], int] = {}
    grants: dict[str, tuple[tuple[str, str], int]] = {}
    record = audit_records.c
    query = sa.select(record.body).where(record.kind == KIND, record.body.like('%"kind":"quota.%'))
    for body in connection.scalars(query.order_by(record.number)):
        act: dict[str, Any] = orjson.loads(body)
        details = act["details"]
        if act["kind"] == "quota.set":
            key = (details["quota"], details["subject"])
            if details["most"] is None:
                own.pop(key, None)
            else:
                own[key] = details["most"]
        elif act["kind"] == "quota.approved" and datetime.fromisoformat(details["until"]) > now:
            grants[details["grant"]] = ((details["quota"], details["subject"]), details["tokens"])
        elif act["kind"] == "quota.ended":
            grants.pop(details["grant"], None)
    granted: dict[tuple[str, str], int] = {}
    for key, tokens in grants.values():
        granted[key] = granted.get(key, 0) + tokens
    return QuotaLimits(defaults, own, granted)
