"""Which configured repository a ticket belongs to (I3). Reads only the ticket and the configuration, and never guesses.

What was written on purpose (field, label, title prefix) binds, even when it is wrong. Words of title and body count only
while they do not contradict one another. Ticket text is hostile: it is read to a bound, and scans are linear in its length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from infra.boards import Ticket
from infra.llm import Frozen
from infra.sections import RepositorySection

Repositories = Mapping[str, RepositorySection]
Rule = Literal["field", "label", "title", "name", "keyword", "board", "only", ""]

KINDS = frozenset(
    "bug chore defect discussion doc docs documentation draft enhancement epic feat feature feedback fix help idea "
    "improvement issue maintenance perf performance proposal q question refactor regression request rfc security story "
    "support suggestion task test tests wip".split()
)
"""Words for what sort of ticket it is. In `[brackets]` before a title they name no repository; as labels they relate nothing."""

ROUTING_LABEL = re.compile(r"\s*(?:repo|repository)\s*[:/=](.*)", re.DOTALL | re.IGNORECASE)
"""`repo:NAME`, `repository/NAME`, `repo=NAME`."""

_OPENING_CHARS = 200
"""Where a text still says what it is about. Without this bound, one issue of `benchmarks.routing` goes to the wrong place:
an editor's user tells, further down, what the app he edits is built with."""
_MOST_CHARS = 100_000
"""Read of a text; more than GitHub (65,536) and Jira (32,767) let a ticket have."""
_MOST_PATH_PARTS = 8
_MOST_PREFIXES = 5
_MOST_NAMES_SHOWN = 10
_SAY_IT = "label it `repo:NAME` or begin its title with `[NAME]`"
_PREFIX = re.compile(r"\s*\[([^\[\]]{0,200})\]")
_CALLED_LIKE_A_REPOSITORY = re.compile(r"(?=.*[^\W\d_])[\w.-]+(?:/[\w.-]+)?")
_WORD = re.compile(r"\w+")
_ADDRESS_TAIL = re.compile(r"[#?@:]")
_CHUNK = re.compile(r"[^\s<>\"'`()\[\]{}|,;]+")
_GLUED_BEFORE = re.compile(r"\w[-.]\Z|[@$+]\Z|::\Z")
_GLUED_AFTER = re.compile(r"[-.]\w|[@+]|::")
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
"""Characters that nobody sees: a `[shop]` with one inside names the shop for whoever reads it, and so it does here."""


class Route(Frozen):
    """Where a ticket goes. `by` is the rule that decided, "" when none did.

    With `repository` None, `reason` is one line for the ticket: what was found, the known names, how to route it.
    """

    repository: str | None
    by: Rule
    reason: str = ""


class _Phrase(NamedTuple):
    """Words that stand for a repository, casefolded; its first word begins at `offset`. A name is matched more strictly."""

    text: str
    offset: int
    repository: str
    is_name: bool


class _Said(NamedTuple):
    """The repositories that a ticket's words point at: by a name or a link, in any way, and so that it counts."""

    named: set[str]
    mentioned: set[str]
    firm: set[str]


def route(ticket: Ticket, repositories: Repositories, board_default: str | None) -> Route:
    """The repository of a ticket; the first rule that applies decides: field, label, `[NAME]` before the title, names,
    keywords, the board's default, and the only configured repository when the board names none.

    A rule that finds an unknown name or several repositories ends the search with None: the next rule would guess.
    """
    seen = _as_seen(ticket)
    for rule in (_by_field, _by_label, _by_prefix, _by_words):
        if found := rule(seen, repositories):
            return found
    return _by_default(repositories, board_default)


def _as_seen(ticket: Ticket) -> Ticket:
    """The ticket without characters that nobody sees, as far as it is read."""
    visible = {
        "title": _UNSEEN.sub("", ticket.title[:_MOST_CHARS]),
        "body": _UNSEEN.sub("", ticket.body[:_MOST_CHARS]),
        "labels": tuple(_UNSEEN.sub("", label[:_MOST_CHARS]) for label in ticket.labels),
        "repository": ticket.repository and _UNSEEN.sub("", ticket.repository[:_MOST_CHARS]),
    }
    return ticket.model_copy(update=visible)


def _by_field(ticket: Ticket, repositories: Repositories) -> Route | None:
    said = (ticket.repository or "").strip()
    return _explicit("field", "the field `repository`", [said], repositories) if said else None


def _by_label(ticket: Ticket, repositories: Repositories) -> Route | None:
    marked = [found[1].strip() for label in ticket.labels if (found := ROUTING_LABEL.fullmatch(label))]
    plain = [label for label in ticket.labels if _called(label, repositories)]
    return _explicit("label", "the label", [*marked, *plain], repositories) if marked or plain else None


def _by_prefix(ticket: Ticket, repositories: Repositories) -> Route | None:
    said = [text for text in _prefixes(ticket.title) if _means_a_repository(text, repositories)]
    return _explicit("title", "the title's prefix", said, repositories) if said else None


def _prefixes(title: str) -> Iterator[str]:
    """The texts of the `[brackets]` a title begins with."""
    end = 0
    for _ in range(_MOST_PREFIXES):
        if not (found := _PREFIX.match(title, end)):
            return
        yield found[1].strip()
        end = found.end()


def _means_a_repository(prefix: str, repositories: Repositories) -> bool:
    """People also write `[Bug]` and `[Feature request]`: a kind of ticket, or several words, name no repository."""
    if _called(prefix, repositories):
        return True
    return prefix.casefold() not in KINDS and bool(_CALLED_LIKE_A_REPOSITORY.fullmatch(prefix))


def _explicit(rule: Rule, place: str, said: Sequence[str], repositories: Repositories) -> Route:
    found: set[str] = set()
    for name in said:
        called = _called(name, repositories)
        if not called:
            return _skipped(
                f"{place} names {name!r:.80}, which is no configured repository", f"correct {place}", repositories
            )
        found |= called
    if len(found) > 1:
        return _skipped(f"{place} fits {_listed(found)} equally", f"let {place} name one of them", repositories)
    return Route(repository=found.pop(), by=rule)


def _called(said: str, repositories: Repositories) -> set[str]:
    """The repositories that are called so: by name, alias, `owner/name` or address."""
    if said in repositories:
        return {said}
    wanted, (host, parts) = _plain(said), _address(said)
    return _at_home([(host, "/".join(parts))], repositories) | {
        name for name, section in repositories.items() if wanted in _names(name, section)
    }


def _by_words(ticket: Ticket, repositories: Repositories) -> Route | None:
    """One repository is meant when no other is mentioned. A single mention far down is made in passing: it can cast
    doubt on another repository, but routes nothing itself."""
    said = _said(ticket, repositories)
    if not said.firm:
        return None
    if len(said.mentioned) > 1:
        found = f"title and text speak of {_listed(said.mentioned)}"
        return _skipped(found, f"say which one is meant: {_SAY_IT}", repositories)
    return Route(repository=min(said.firm), by="name" if said.named else "keyword")


def _said(ticket: Ticket, repositories: Repositories) -> _Said:
    phrases = _phrases(repositories)
    text = _plain(ticket.body)
    shown, hidden = _apart(text)
    linked = _linked(f"{ticket.title}\n{shown}", repositories)
    title = [phrase for _, phrase in _mentions(_plain(ticket.title), phrases)]
    told = list(_mentions(text, phrases))
    body = [(start, phrase) for start, phrase in told if shown[start] != " "]
    aside = _linked(hidden, repositories) | {phrase.repository for _, phrase in told}
    everywhere = title + [phrase for _, phrase in body]
    times = Counter(phrase.repository for _, phrase in body)
    often = {name for name, count in times.items() if count > 1}
    early = {phrase.repository for start, phrase in body if start < _OPENING_CHARS}
    return _Said(
        named=linked | {phrase.repository for phrase in everywhere if phrase.is_name},
        mentioned=linked | aside | {phrase.repository for phrase in everywhere},
        firm=linked | often | early | {phrase.repository for phrase in title},
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _names(name: str, section: RepositorySection) -> set[str]:
    return {_plain(each) for each in (name, *section.aliases)} - {""}


def _phrases(repositories: Repositories) -> dict[str, list[_Phrase]]:
    """Names and keywords by their first word, longest first: the name of one may be a part of another's."""
    found: dict[str, list[_Phrase]] = {}
    for name, section in repositories.items():
        names = _names(name, section)
        for text in names | {_plain(each) for each in section.keywords}:
            if first := _WORD.search(text):
                found.setdefault(first[0], []).append(_Phrase(text, first.start(), name, text in names))
    return {word: sorted(each, key=lambda phrase: -len(phrase.text)) for word, each in found.items()}


def _mentions(text: str, phrases: Mapping[str, Sequence[_Phrase]]) -> Iterator[tuple[int, _Phrase]]:
    """Where the phrases stand in a plain text. Where several begin, the longest that fits counts, for all who use it."""
    in_path, done = _paths(text), 0
    for word in _WORD.finditer(text):
        if word[0] not in phrases:
            continue
        fitting = [p for p in phrases[word[0]] if _fits(p, text, word.start() - p.offset, done, in_path)]
        longest = [phrase for phrase in fitting if phrase.text == fitting[0].text]
        if longest:
            start = word.start() - longest[0].offset
            done = start + len(longest[0].text)
            yield from ((start, phrase) for phrase in longest)


def _fits(phrase: _Phrase, text: str, start: int, done: int, in_path: bytearray) -> bool:
    """Whether the phrase stands at `start` in whole words; a name moreover outside of identifiers, paths and addresses."""
    end = start + len(phrase.text)
    if start < done or not text.startswith(phrase.text, start):
        return False
    if _WORD.match(phrase.text[-1]) and _WORD.match(text[end : end + 1]):
        return False
    glued = _GLUED_BEFORE.search(text[max(0, start - 2) : start]) or _GLUED_AFTER.match(text[end : end + 2])
    return not (phrase.is_name and (glued or in_path[start] or in_path[end - 1]))


def _paths(text: str) -> bytearray:
    """1 for every character that is a part of a path or an address."""
    inside = bytearray(len(text))
    for chunk in _CHUNK.finditer(text):
        if "/" in chunk[0] or "\\" in chunk[0]:
            inside[chunk.start() : chunk.end()] = b"\1" * len(chunk[0])
    return inside


def _apart(text: str) -> tuple[str, str]:
    """A text without its `<!-- … -->`, which a template left there and nobody sees, and those alone: both as long as before,
    with blanks in place of the other. A comment without end hides the rest."""
    shown, hidden, end = list[str](), list[str](), 0
    while (start := text.find("<!--", end)) >= 0:
        shown.append(text[end:start])
        hidden.append(" " * (start - end))
        closed = text.find("-->", start)
        end = closed + 3 if closed >= 0 else len(text)
        shown.append(" " * (end - start))
        hidden.append(text[start:end])
    return "".join((*shown, text[end:])), "".join(hidden)


def _linked(text: str, repositories: Repositories) -> set[str]:
    """The repositories whose address, or an address inside of them, or `owner/name` stands in a text."""
    addresses = [_address(chunk[0]) for chunk in _CHUNK.finditer(text) if "/" in chunk[0]]
    return _at_home({place for host, parts in addresses for place in _places(host, parts)}, repositories)


def _places(host: str, parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Host and path of every repository that an address may lead into. Without a host it is one path, or none."""
    shortest = 2 if host else max(2, len(parts))
    return ((host, "/".join(parts[:length])) for length in range(shortest, len(parts) + 1))


def _at_home(places: Iterable[tuple[str, str]], repositories: Repositories) -> set[str]:
    """The repositories that live at one of the places. A host that either side does not say fits every host."""
    hosts: dict[str, set[str]] = {}
    for host, path in places:
        hosts.setdefault(path, set()).add(host)
    return {
        name
        for name, section in repositories.items()
        for host, path in _homes(name, section)
        if path in hosts and (not host or hosts[path] & {"", host})
    }


def _homes(name: str, section: RepositorySection) -> Iterator[tuple[str, str]]:
    """Host ("" for any) and path (`owner/name`, longer on some forges) of a repository, as the configuration tells."""
    if section.github:
        host = (urlsplit(section.github.url).hostname or "").removeprefix("api.")
        yield host, section.github.project.casefold()
    for said in (section.remote or "", name, *section.aliases):
        host, parts = _address(said)
        if len(parts) > 1:
            yield host, "/".join(parts)


def _address(chunk: str) -> tuple[str, list[str]]:
    """Host ("" when not said) and path of an address, a clone address or `owner/name#12`; no path for absolute files."""
    text = chunk.casefold().strip(".,:!?*_~")
    scheme, has_scheme, rest = text.partition("://")
    rest = rest if has_scheme else scheme
    login, has_login, address = rest.partition("@")
    if has_login and "/" not in login:
        rest = address if has_scheme else address.replace(":", "/", 1)
    first, *parts = rest.split("/", _MOST_PATH_PARTS + 1)[: _MOST_PATH_PARTS + 1]
    parts = [_ADDRESS_TAIL.split(part, maxsplit=1)[0].removesuffix(".git") for part in parts if part]
    if has_scheme or "." in first:
        return first.partition(":")[0].removeprefix("www."), parts
    return "", [first, *parts] if first else []


def _by_default(repositories: Repositories, board_default: str | None) -> Route:
    if board_default in repositories:
        return Route(repository=board_default, by="board")
    if board_default is not None:
        found = f"it says no repository, and {board_default!r:.80}, the default of its board, is not configured"
        return _skipped(found, "correct `repository` of the board in factory.yaml", repositories)
    if len(repositories) == 1:
        return Route(repository=next(iter(repositories)), by="only")
    found = "it says no repository: no field, label or title prefix, and no name or keyword in title and text"
    return _skipped(found, _SAY_IT, repositories)


def _skipped(found: str, remedy: str, repositories: Repositories) -> Route:
    return Route(
        repository=None, by="", reason=f"Not routed: {found}. Known: {_listed(repositories)}. To route it, {remedy}."
    )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _MOST_NAMES_SHOWN} more" if len(ordered) > _MOST_NAMES_SHOWN else ""
    return ", ".join(repr(name) for name in ordered[:_MOST_NAMES_SHOWN]) + more or "none"
