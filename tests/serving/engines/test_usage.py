from typing import Any

import pytest

from serving.engines.usage import EngineUsage, as_openai_says, read_usage
from tallybook.usage import MAX_TOKENS

SUMS = {"prompt_tokens": 5, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, EngineUsage(5, 2)),
        ({"prompt_tokens": 5, "total_tokens": 5}, EngineUsage(5, 0)),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
            EngineUsage(5, 2, cached=4),
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "prompt_cache_hit_tokens": 3},
            EngineUsage(5, 2, cached=3),
        ),
        ({"prompt_tokens": 5, "completion_tokens": 2, "reasoning_tokens": 1}, EngineUsage(5, 2, reasoning=1)),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            EngineUsage(5, 2, reasoning=2),
        ),
        # A part that is more than the whole was not said.
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 6},
                "reasoning_tokens": 3,
            },
            EngineUsage(5, 2),
        ),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}, EngineUsage(5, 2)),
        (None, None),
        ([], None),
        ({}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({"prompt_tokens": -5, "completion_tokens": 2}, None),
        ({"prompt_tokens": 5.0, "completion_tokens": 2}, None),
        ({"prompt_tokens": True, "completion_tokens": 2}, None),
        ({"prompt_tokens": 5, "completion_tokens": None}, None),
        ({"prompt_tokens": 5, "completion_tokens": MAX_TOKENS + 1}, None),
    ],
)
def test_what_an_engine_says_is_read_with_distrust(said: Any, expected: EngineUsage | None) -> None:
    assert read_usage(said) == expected


def test_what_we_say_reads_as_what_we_know() -> None:
    usage = EngineUsage(9, 5, 4, 3)
    assert read_usage(as_openai_says(usage)) == usage
