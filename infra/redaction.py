"""Masking secrets in text before it is stored or logged: those of the settings, values of secret environment variables, and
known token shapes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

MASK = "***"

_SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Shorter values (`1`, `true`, `local`) are not secrets, and masking them would make every text unreadable."""

# Every repetition that a hostile text could make quadratic is bounded.
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)", re.S
        ),
        MASK,
    ),
    (re.compile(r"(\b[a-z][a-z0-9+.\-]{0,30}://[^\s:/@]{0,200}):[^\s@/]{1,500}@", re.I), rf"\1:{MASK}@"),
    (re.compile(r"(\bbearer\s{1,5})[A-Za-z0-9._~+/=\-]{8,}", re.I), rf"\1{MASK}"),
    (re.compile(r"\bsk-[A-Za-z0-9_\-]{16,}"), MASK),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{16,}"), MASK),
    (re.compile(r"\bxox[a-z]-[A-Za-z0-9\-]{8,}"), MASK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), MASK),
    (re.compile(r"\b(?:glpat-|gldt-)[A-Za-z0-9_\-]{16,}"), MASK),
    (re.compile(r"\bnpm_[A-Za-z0-9]{30,}"), MASK),
    (re.compile(r"\bAIza[A-Za-z0-9_\-]{35}"), MASK),
    (re.compile(r"\beyJ[A-Za-z0-9_\-]{8,2000}\.eyJ[A-Za-z0-9_\-]{8,4000}\.[A-Za-z0-9_\-]{16,}"), MASK),
)


_remembered: frozenset[str] = frozenset()


def remember(secret: str) -> None:
    """Mask this value from now on, wherever it came from: the variable that factory.yaml names may have any name."""
    global _remembered
    if len(secret.strip()) >= _SHORTEST_SECRET:
        _remembered = _remembered | {secret.strip()}  # a new one: other threads are reading


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` with secrets replaced by `***`. `environment`: instead of what this process knows, its environment and all
    that it was told to `remember`."""
    for value in _secret_values(os.environ, _remembered) if environment is None else _secret_values(environment):
        text = text.replace(value, MASK)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


def _secret_values(environment: Mapping[str, str], others: Iterable[str] = ()) -> list[str]:
    """Longest first, so that a secret that contains another one is masked whole."""
    named = {v for name, v in environment.items() if _SECRET_NAME.search(name) and len(v) >= _SHORTEST_SECRET}
    return sorted(named.union(others), key=len, reverse=True)
