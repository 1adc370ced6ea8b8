"""What engines say of the tokens of a request, read with distrust."""

from __future__ import annotations

from typing import Any, NamedTuple

from tallybook.usage import MAX_TOKENS


class EngineUsage(NamedTuple):
    """Tokens: `cached` are part of `prompt`, `reasoning` of `completion`."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0


def read_usage(said: Any, most: int = MAX_TOKENS) -> EngineUsage | None:
    """The usage that an engine reports, or None if it is missing or can't be true.

    Neither the prompt nor the completion can have more than `most` tokens.

    OpenAI's names; beside them DeepSeek's of cached tokens and SGLang's of reasoning tokens. A detail that
    can't be true counts as not said, since the sums are what is billed.
    """
    if not isinstance(said, dict):
        return None
    prompt, completion = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens", 0))
    if not prompt or completion is None or max(prompt, completion) > most:
        return None  # no prompt has no tokens: engines that count nothing say so
    cached = _detail(said, "prompt_tokens_details", "cached_tokens")
    if cached is None:
        cached = _count(said.get("prompt_cache_hit_tokens"))
    reasoning = _detail(said, "completion_tokens_details", "reasoning_tokens")
    if reasoning is None:
        reasoning = _count(said.get("reasoning_tokens"))
    return EngineUsage(
        prompt,
        completion,
        cached if cached is not None and cached <= prompt else 0,
        reasoning if reasoning is not None and reasoning <= completion else 0,
    )


def as_openai_says(usage: EngineUsage) -> dict[str, Any]:
    """The usage object of an answer."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _detail(said: dict[str, Any], group: str, name: str) -> int | None:
    details = said.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None
