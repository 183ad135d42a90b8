"""What a small model is asked, byte for byte: its cached shares and its solved share were measured with these words."""

from __future__ import annotations

import hashlib
import json

import pytest
from pydantic import BaseModel

from tasks import judging, planning, review, security, testing


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def schema(shape: type[BaseModel]) -> object:
    return shape.model_json_schema()


@pytest.mark.parametrize(
    ("role", "asked", "measured"),
    [
        ("architect", (planning.SMALL_INSTRUCTION, schema(planning.SmallPlan)), "35393db1dab24aec"),
        ("tester", (testing.PYTHON_INSTRUCTION, testing.NODE_INSTRUCTION), "28da2e58f4f5b2c0"),
        ("auditor", (security.SMALL_INSTRUCTION, schema(security.Threats)), "2e4405e1bafc78c0"),
        ("reviewer", (review.SMALL_INSTRUCTION, schema(review.SmallReview)), "3e06c4abe96e9284"),
        ("judge", (judging.INSTRUCTION, schema(judging.Opinion)), "292f9876361c64f2"),
    ],
)
def test_the_questions_of_the_small_tier_are_those_that_were_measured(
    role: str, asked: tuple[object, ...], measured: str
) -> None:
    """A new digest means: run the benchmark again, say so in the changelog, then write it down here."""
    assert digest(*asked) == measured, role
