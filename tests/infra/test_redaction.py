"""Secrets are masked by name of their variable and by their shape, in time that hostile text cannot stretch."""

from __future__ import annotations

import time

import pytest

from infra.redaction import redact


@pytest.mark.parametrize(
    "secret",
    [
        "sk-" + "proj-" + "a1B2c3" * 5,
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "github_pat_11ABCDEFG0abcdefghijkl_mnop",
        "xoxb-" + "123456789012-abcdefABCDEF",
        "AKIAIOSFODNN7EXAMPLE",
        "glpat-" + "a1B2c3D4" * 3,
        "npm_" + "a1B2c3" * 6,
        "AIza" + "a1B2c3D" * 5,
        "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "c2lnbmF0dXJlLW9mLWl0",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\ndef\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\ncut off",
    ],
)
def test_known_token_shapes_are_masked(secret: str) -> None:
    """OB1: no secrets."""
    assert redact(f"before {secret}", {}) == "before ***"


def test_a_url_keeps_its_user_and_host_but_not_its_password() -> None:
    assert redact("at postgresql://me:pa55@h:5432/db!", {}) == "at postgresql://me:***@h:5432/db!"


def test_a_bearer_header_keeps_its_name() -> None:
    assert redact("Authorization: Bearer abc.def-12345", {}) == "Authorization: Bearer ***"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "GITHUB_TOKEN", "app_secret", "PGPASSWORD_PASSWORD", "TOKEN"])
def test_values_of_secret_variables_are_masked(name: str) -> None:
    assert redact("it is correct-horse.", {name: "correct-horse"}) == "it is ***."


def test_a_secret_that_contains_another_is_masked_whole() -> None:
    assert redact("long-secret-more", {"A_KEY": "long-secret", "B_KEY": "long-secret-more"}) == "***"


def test_ordinary_words_values_and_hashes_stay() -> None:
    text = "risk-assessment of task-sk-1 at https://example.org/a:b@c by bearer of news, 0123456789abcdef0123456789abcdef01234567"
    assert redact(text, {"PATH": "assessment", "SORT_KEY": "task"}) == text


@pytest.mark.parametrize(
    "text",
    ["a" * 400_000, "a://" * 100_000, "-----BEGIN PRIVATE KEY-----" * 15_000, "a:" * 200_000, "eyJaaaaaaaa." * 30_000],
)
def test_hostile_text_is_masked_in_little_time(text: str) -> None:
    started = time.monotonic()
    redact(text, {})
    assert time.monotonic() - started < 3
