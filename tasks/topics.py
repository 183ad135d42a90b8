"""File memory: what people wrote down for all work on this machine, in `<home>/memory/topics/*.md`, and which parts fit a ticket.

Anybody may edit the files at any time, so a bad one is a warning and never an error; what they say is data in a prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from infra.errors import ConfigError
from infra.redaction import redact
from tasks import services
from tasks.context import words
from tasks.models import Frozen, Ticket
from tasks.policy import front_matter

MAX_FILES, MAX_BYTES = 200, 64_000
SECTION_CHARS = 1_500
SHARED_WORDS = 2
"""So many words of a section have to be the ticket's before it is shown."""


class Section(Frozen):
    """A part of a topic file, from one heading to the next."""

    file: str
    heading: str
    text: str


class Topics(Frozen):
    """Sections for one repository, and what is wrong with files that were left out."""

    sections: tuple[Section, ...] = ()
    problems: tuple[str, ...] = ()


def folder() -> Path:
    return services.settings().root / "memory" / "topics"


def read_topics(repository: str) -> Topics:
    """What the files say that are for all repositories, or name this one under `repositories` in their front matter."""
    sections: list[Section] = []
    problems: list[str] = []
    for path in islice(sorted(folder().glob("*.md")), MAX_FILES):
        try:
            sections += _sections(path, repository)
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            problems.append(f"{path.name!r} is left out: {' '.join(str(reason).split())[:200]}")
    return Topics(sections=tuple(sections), problems=tuple(problems))


def _sections(path: Path, repository: str) -> Iterator[Section]:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"it is no plain file of at most {MAX_BYTES} bytes")
    front, text = front_matter(path.read_text(encoding="utf-8"))
    named = front.get("repositories", [])
    if not isinstance(named, list) or front.keys() - {"repositories"}:
        raise ConfigError("its front matter may only have `repositories: [names]`")
    if named and repository not in named:
        return
    for part in re.split(r"(?m)^(?=#{1,6} )", text):
        heading, _, rest = part.strip().partition("\n") if part.startswith("#") else ("", "", part)
        if rest.strip():
            yield Section(
                file=path.name, heading=redact(heading.strip("# ")), text=redact(rest.strip())[:SECTION_CHARS]
            )


def fitting(topics: Topics, ticket: Ticket, chars: int) -> tuple[str, ...]:
    """One line per section that shares words with the ticket, most first, until `chars` are used up. Hostile until fenced."""
    asked = set(words(f"{ticket.title}\n{ticket.body}"))
    shared = {s: len(asked & set(words(f"{s.heading} {s.text}"))) for s in topics.sections}
    lines: list[str] = []
    for section in sorted(shared, key=lambda s: -shared[s]):
        line = _line(section)
        if shared[section] >= SHARED_WORDS and len(line) < chars:
            lines.append(line)
            chars -= len(line) + 1
    return tuple(lines)


def _line(section: Section) -> str:
    """Printable, without line breaks; brackets would end the line's head."""
    plain = "".join(c if c.isprintable() or c == "\n" else " " for c in f"{section.heading}\n{section.text}".strip())
    file = re.sub(r"[^\w. -]", " ", section.file)[:80]
    return f"[topic file {file}] {json.dumps(plain, ensure_ascii=False)}"
