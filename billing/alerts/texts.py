"""What an alert says, in English and Chinese: one line, that tells who, how much and against what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from billing.reports.words import Language

_KINDS: dict[Language, dict[str, str]] = {
    "en": {
        "user": "user", "project": "project", "model": "model", "department": "department", "day": "day",
        "ledger": "ledger", "journal": "journal",
    },
    "zh": {
        "user": "用户", "project": "项目", "model": "模型", "department": "部门", "day": "日期",
        "ledger": "账本", "journal": "日志",
    },
}  # fmt: skip
_CHANGES: dict[Language, dict[str, str]] = {
    "en": {"opened": "NEW", "rose": "WORSE", "resolved": "OVER"},
    "zh": {"opened": "新增", "rose": "加剧", "resolved": "已恢复"},
}
_SAID: dict[Language, dict[str, str]] = {
    "en": {
        "surge": "{kind} {subject} used {tokens} tokens on {day}, +{rise_percent}% "
        "over its usual {baseline_tokens}",
        "budget": "{kind} {subject} has spent {percent}% of its budget of {month}: {billed} of {budget}",
        "budget_projected": "{kind} {subject} will overrun its budget of {month} at this pace: "
        "{projected} of {budget}",
        "quota": "{kind} {subject} has used {percent}% of its quota of {period}: {tokens} of {limit} tokens",
        "unrated": "model {subject} has no price: {tokens} tokens since {since} are unrated",
        "not_closed": "days with usage are over and not closed: {days}, {first} to {last}",
        "mismatch": "{subject} does not add up: {difference}",
        "unmetered": "model {subject} answered {served} requests on {day}, of which "
        "only {metered} were metered: {percent}% went past",
        "journal_lag": "events wait in the journal for {minutes} minutes: {segments} segments, "
        "{bytes} bytes, the oldest in {segment}",
        "address": "user {subject} sent {requests} requests on {day} "
        "from networks never seen before: {networks}",
    },
    "zh": {
        "surge": "{kind} {subject} 在 {day} 使用 {tokens} 个 token,"
        "比平常的 {baseline_tokens} 高 {rise_percent}%",
        "budget": "{kind} {subject} 已用掉 {month} 预算的 {percent}%:{billed} / {budget}",
        "budget_projected": "{kind} {subject} 按目前速度将超出 {month} 预算:{projected} / {budget}",
        "quota": "{kind} {subject} 已用掉 {period} 配额的 {percent}%:{tokens} / {limit} 个 token",
        "unrated": "模型 {subject} 没有价格:自 {since} 起有 {tokens} 个 token 未计价",
        "not_closed": "有 {days} 个已结束的日期尚未结账:{first} 至 {last}",
        "mismatch": "{subject} 对不上账:{difference}",
        "unmetered": "模型 {subject} 在 {day} 应答 {served} 次请求,仅 {metered} 次被计量:{percent}% 绕过计量",
        "journal_lag": "日志中的事件已等待 {minutes} 分钟:{segments} 个分段,{bytes} 字节,最早的在 {segment}",
        "address": "用户 {subject} 在 {day} 有 {requests} 次请求来自从未出现过的网络:{networks}",
    },
}
HEADS: dict[Language, str] = {"en": "Tallybook: {count} alerts", "zh": "Tallybook:{count} 条告警"}
HEAD_ONE: dict[Language, str] = {"en": "Tallybook: 1 alert", "zh": "Tallybook:1 条告警"}
SIMULATED: dict[Language, str] = {
    "en": "Simulated usage: nobody asked for it, and nobody is to pay for it.",
    "zh": "模拟数据:没有人真正使用,也没有人需要付费。",
}
MORE: dict[Language, str] = {"en": "and {count} more", "zh": "另有 {count} 条"}
AGAIN: dict[Language, str] = {
    "en": "(sent again, as nobody knows whether it arrived)",
    "zh": "(重发:不确定上次是否送达)",
}


def sentence(language: Language, rule: str, kind: str, subject: str, facts: Mapping[str, Any]) -> str:
    """'user user-17 used 41,200 tokens on 2026-11-20, +812% over its usual 4,518'."""
    told = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in facts.items()}
    return _SAID[language][rule].format(kind=_KINDS[language].get(kind, kind), subject=subject, **told)


def changed(language: Language, change: str, text: str) -> str:
    """'NEW  user user-17 …'."""
    return f"[{_CHANGES[language][change]}] {text}"
