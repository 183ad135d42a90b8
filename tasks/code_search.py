"""Which files of a repository a ticket is about: all source files of a small one, in a large one those the index names.

Ranking and choosing excerpts is done by `tasks.context`, on the files that come from here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

from infra.code_index import CodeIndex, Place
from infra.git import Mirror
from tasks import services
from tasks.context import source_files
from tasks.models import Brief

SMALL_REPOSITORY_FILES = 200
"""Up to here every source file is read and ranked, so that prompts are the same bytes as without an index."""
CANDIDATES = 40
SAID_CHARS = 20_000
_HITS = 120
_FIRST = 12
"""Files of one kind that come before those of the next."""
_CALLS = 40
_FAMILIAR = 4
"""A name with more definitions than this says nothing about the place."""


def sources(brief: Brief) -> dict[str, str]:
    """The source files of the base commit that may matter for the ticket: path -> text. Blocks; the first call for a
    large repository indexes it.
    """
    found = services.mirror(brief.repository).read_all(brief.repository.base_sha, likely_paths(brief))
    return {path: raw.decode(errors="replace") for path, raw in found.items()}


def likely_paths(brief: Brief) -> list[str]:
    """Their paths."""
    mirror, sha = services.mirror(brief.repository), brief.repository.base_sha
    return likely_files(mirror, sha, source_files(mirror.paths(sha)), _said(brief))


def _said(brief: Brief) -> str:
    """What tells the ticket's place: its text, and what failing tests say."""
    failing = brief.baseline.output if brief.baseline.ids("failed") else ""
    return f"{brief.ticket.title}\n{brief.ticket.body}\n{failing}"[:SAID_CHARS]


def likely_files(mirror: Mirror, sha: str, paths: list[str], text: str) -> list[str]:
    """`paths` when they are few, else the CANDIDATES of them that have most to do with `text`, best first.

    What speaks for a file, strongest first: its name is spelled out, it defines a name that is written as code, it shares
    rare words, it defines what those call (users name the public function, the bug sits in what it calls).
    """
    if len(paths) <= SMALL_REPOSITORY_FILES:
        return paths
    index, known = CodeIndex(mirror), set(paths)
    hits = index.search(sha, text, _HITS)
    named = _definitions(index, sha, _names_written_as_code(text))[:_FIRST]
    bodies = chain(_bodies(mirror, sha, named), (hit.text for hit in hits[:_FIRST] if hit.path in known))
    called = [place.path for place in _definitions(index, sha, _called(bodies))]
    shared = [hit.path for hit in hits]
    found = chain(_spelled(paths, text), (p.path for p in named), shared[:_FIRST], called[:_FIRST], shared, called)
    return [path for path in dict.fromkeys(found) if path in known][:CANDIDATES]


def _names_written_as_code(text: str) -> list[str]:
    """Identifiers before a bracket, in backticks, with an underscore or with a capital inside."""
    found = re.findall(r"\b([A-Za-z_]\w*)\(|`([\w.]{1,100})`|\b([a-zA-Z]\w*(?:_|[a-z](?=[A-Z]))\w+)", text)
    return list(dict.fromkeys(name.rpartition(".")[2] for names in found for name in names if name))


def _called(bodies: Iterable[str]) -> list[str]:
    """Names that are called, those that most of the bodies call first."""
    counted = Counter(name for body in bodies for name in set(re.findall(r"\b[A-Za-z_]\w+(?=\()", body)))
    return [name for name, _ in counted.most_common()]


def _definitions(index: CodeIndex, sha: str, names: list[str]) -> list[Place]:
    """Where the first names are defined, without those that are defined everywhere."""
    found = [index.symbols(sha, name, _FAMILIAR + 1) for name in names[:_CALLS]]
    return [place for places in found if len(places) <= _FAMILIAR for place in places]


def _bodies(mirror: Mirror, sha: str, places: list[Place]) -> Iterator[str]:
    texts = mirror.read_all(sha, {place.path for place in places})
    for place in places:
        lines = texts[place.path].decode(errors="replace").split("\n")
        yield "\n".join(lines[place.start_line - 1 : place.end_line])


def _spelled(paths: list[str], text: str) -> list[str]:
    """Files whose whole path stands in the text, then those whose name does, if that is no common one."""
    words = set(re.findall(r"[\w./-]+", text)) | set(re.findall(r"\w+", text))
    names = Counter(path.rsplit("/", 1)[-1] for path in paths)
    whole = [path for path in paths if path in text]
    by_name = [p for p in paths if (name := p.rsplit("/", 1)[-1]) in words or (name.rsplit(".", 1)[0] in words)]
    rare = [path for path in by_name if names[path.rsplit("/", 1)[-1]] <= _FAMILIAR]
    return [*whole[:_FIRST], *rare[:_FIRST]]
