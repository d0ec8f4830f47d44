"""Usage as providers give it."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import CompletionUsage

from chatledger import Usage

DETAILS: dict[str, Any] = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 3},
    "cost": 0.5,
}


@pytest.mark.parametrize("given", [DETAILS, CompletionUsage.model_validate(DETAILS)])
def test_a_completions_usage_is_taken_as_it_is(given: Any) -> None:
    usage = Usage.model_validate(given)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 5, 15)
    assert (usage.cache_read_tokens, usage.reasoning_tokens) == (8, 3)
    assert usage.model_extra is not None
    assert usage.model_extra["cost"] == 0.5
    assert usage.model_extra["prompt_tokens_details"] == {"cached_tokens": 8}


def test_the_total_is_the_sum_unless_it_is_told() -> None:
    assert Usage(prompt_tokens=1, completion_tokens=2).total_tokens == 3
    assert Usage(prompt_tokens=1, completion_tokens=2, total_tokens=5).total_tokens == 5


def test_each_has_an_id_and_the_id_is_not_compared() -> None:
    one, other = Usage(prompt_tokens=1), Usage(prompt_tokens=1)
    assert one.usage_id != other.usage_id
    assert one == other
    assert one != Usage(prompt_tokens=2)
    assert one != Usage.model_validate({"prompt_tokens": 1, "tier": "flex"})
    assert Usage.model_validate(one.model_dump()).usage_id == one.usage_id
