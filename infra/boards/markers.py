"""The hidden mark on a comment the factory wrote: which comment it is, signed so that pasted text cannot pass for ours.

The key is derived from the board's token, which every node of the factory has; after a new token older marks count as
a person's words, and the next write makes one new comment.
"""

from __future__ import annotations

import hashlib
import hmac
import re

_MARK = re.compile(r"<!-- df:(?P<marker>[^\s]{1,200}) (?P<signature>[0-9a-f]{16}) -->")


def seal(secret: str, key: str, marker: str, body: str) -> str:
    """`body` with its mark as the last line. Marks inside `body`, which may quote a hostile text, are made visible."""
    return (
        f"{body.replace('<!-- df:', '&lt;!-- df:').rstrip()}\n\n<!-- df:{marker} {signature(secret, key, marker)} -->"
    )


def unseal(secret: str, key: str, text: str) -> tuple[str, str | None]:
    """The comment without its mark, and the marker, or None when the mark is missing or signed by somebody else."""
    lines = text.rstrip().splitlines()
    found = _MARK.fullmatch(lines[-1].strip()) if lines else None
    if found is None or not hmac.compare_digest(found["signature"], signature(secret, key, found["marker"])):
        return text, None
    return "\n".join(lines[:-1]).rstrip(), found["marker"]


def signature(secret: str, key: str, marker: str) -> str:
    """16 hex digits that only who knows the board's token can make, for this ticket (`key`) and marker."""
    return hmac.new(secret.encode(), f"{key}\0{marker}".encode(), hashlib.sha256).hexdigest()[:16]
