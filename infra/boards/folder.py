"""A board in a folder: one Markdown file per ticket, `<key>.md`, with YAML front matter. People edit the same files.

    ---
    title: Add a flag
    state: todo
    labels: [bug, cli]
    ---
    What has to be done.

    <!-- darkfactory:comments -->

    ### darkfactory, 2026-01-31T12:00:00+00:00
    <!-- df:outcome 0123456789abcdef -->
    Done.
    <!-- /df -->

Only `title` is required; it may also be the first `# heading`. An absent `state` means `todo`, because people write these
files by hand. Comments stand below the first section line; whatever is not a block written by the factory is a person's.
The number beside a marker signs ticket and marker with a key in `<board>/.darkfactory/`: text that was pasted into a
ticket cannot pass for a comment of the factory.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from infra.boards import Comment, Ticket
from infra.boards.payloads import one_line
from infra.errors import ConfigError
from infra.files import write_atomically
from infra.sections import AnyBoard
from infra.slots import file_lock

AUTHOR = "darkfactory"
DEFAULT_STATE = "todo"
LARGEST_BYTES = 1_000_000
_LARGEST_FRONT_MATTER = 64_000
_LONGEST_KEY = 150
_SECTION = "<!-- darkfactory:comments -->"
_END = "<!-- /df -->"
_PRIORITIES = {"urgent": 1, "high": 2, "medium": 3, "low": 4, "1": 1, "2": 2, "3": 3, "4": 4}

_log = logging.getLogger(__name__)
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
_PLAIN_STATE = re.compile(r"^state:[ \t]+([A-Za-z][\w-]*(?: [\w-]+)*)[ \t]*\r?$(?!\s*\n[ \t])", re.M)
_HEADING = re.compile(r"^#[ \t]+(\S[^\r\n]*)", re.M)
_COMMENT_HEADING = re.compile(r"### (?P<author>[^\n]{1,100}?), (?P<at>\d{4}-\d\d-\d\d[0-9T:.+Z \-]{0,25})\s*")
_MARKER = re.compile(r"<!-- df:(?P<marker>[^\s]{1,200}) (?P<signature>[0-9a-f]{16}) -->\s*")


@dataclass(frozen=True)
class _Scalar:
    """A text of the front matter as it is written, and where its characters stand in the file."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Block:
    """A comment and its lines `start` to `end` (exclusive) in the file."""

    comment: Comment
    start: int
    end: int


class FolderBoard:
    """The board in `path`. Writes replace the file at once and keep every byte they do not mean to change.

    `README.md`, hidden files and everything that is not `*.md` are no tickets.
    """

    def __init__(self, path: Path, section: AnyBoard | None = None, name: str = "folder") -> None:
        self.path = path
        self.name = name
        self._section = section or AnyBoard()
        self._closed = {state.casefold() for state in self._section.states.closed}

    def tickets_in_states(self, states: list[str]) -> list[Ticket]:
        """Tickets in any of the states (compared without case), ordered by key. Malformed ones are logged and left out.

        Raises ConfigError when the folder cannot be listed.
        """
        if not states:
            return []
        wanted = {state.strip().casefold() for state in states}
        required = {" ".join(label.split()).casefold() for label in self._section.required_labels}
        found = [t for t in self._readable(wanted) if t.state.casefold() in wanted and required <= set(t.labels)]
        return [self._unblocked(ticket) for ticket in found]

    def tickets_by_keys(self, keys: list[str]) -> list[Ticket]:
        """The named tickets, each once; unknown keys are absent. Raises ConfigError for a malformed one."""
        known = set(self._keys()) if keys else set()
        return [self._unblocked(self._read(key)) for key in dict.fromkeys(keys) if key in known]

    def find(self, name: str) -> Ticket:
        """The ticket that a person means by a key or by the path of its file. Raises ConfigError with close keys."""
        path = Path(name).expanduser()
        if name.endswith(".md") and path.exists():
            if path.absolute().parent.resolve() != self.path.resolve():
                raise ConfigError(f"{name!r} is not in the board {str(self.path)!r}; move it there or set `board`")
            name = path.name.removesuffix(".md")
        self._require(name)
        return self._read(name)

    def move(self, key: str, state: str) -> None:
        """Set the ticket's state; nothing else in the file changes. Raises ConfigError."""
        self._require(key)
        with self._alone():
            self._set(key, "state", state, yaml.safe_dump(state, allow_unicode=True, width=1000).removesuffix("...\n"))

    def comment(self, key: str, body: str, marker: str) -> None:
        """Write, or replace in place, the comment with `marker`. The same body again changes nothing."""
        if not re.fullmatch(r"[A-Za-z0-9._:/@-]{1,200}", marker):
            raise ConfigError(f"comment marker {marker!r} is not usable; use letters, digits and . _ : / @ - only")
        self._require(key)
        with self._alone():
            self._comment(key, body, marker)

    def _comment(self, key: str, body: str, marker: str) -> None:
        text = self._text(key)
        newline = "\r\n" if "\r\n" in text else "\n"
        lines = text.splitlines(keepends=True)
        old = next((b for b in _blocks(key, lines, self._signed) if b.comment.marker == marker), None)
        body = _harmless(body)
        if old and old.comment.body == body:
            return
        new = self._comment_lines(key, body, marker, newline)
        if old:
            lines[old.start : old.end] = new
        else:
            lines += _separator(lines, newline) + new
        self._write(key, "".join(lines))

    def label(self, key: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Add and remove labels; nothing else in the file changes. Raises ConfigError."""
        self._require(key)
        with self._alone():
            gone = set(_labels(remove)) - set(_labels(add))
            kept = [label for label in self._read(key).labels if label not in gone]
            wanted = tuple(dict.fromkeys([*kept, *_labels(add)]))
            flow = yaml.safe_dump(list(wanted), default_flow_style=True, allow_unicode=True, width=10_000)
            self._set(key, "labels", wanted, flow)

    def _set(self, key: str, name: str, wanted: object, value: str) -> None:
        """Write another value (YAML) of one field, if the file then says that and nothing else."""
        text = self._text(key)
        before = _parse(key, text, self.path, self._signed)
        after = before.model_copy(update={name: wanted})
        if after == before:
            return
        changed = _with_field(text, name, value.strip())
        try:
            safe = _parse(key, changed, self.path, self._signed) == after
        except ConfigError:
            safe = False
        if not safe:
            raise ConfigError(
                f"{self._place(key)}: `{name}` cannot be set to {wanted!r}; write it as one line `{name}: …`"
            )
        self._write(key, changed)

    def create(
        self, title: str, body: str, *, marker: str, labels: Sequence[str] = (), priority: int | None = None
    ) -> Ticket:
        """A new file whose name is made from title and marker, or the one that is there already. Raises ConfigError."""
        self._keys()
        with self._alone():
            return self._created(title, body, marker, labels, priority)

    def _created(self, title: str, body: str, marker: str, labels: Sequence[str], priority: int | None) -> Ticket:
        digest = hashlib.sha256(marker.encode()).hexdigest()[:12]
        key = f"{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')[:60].rstrip('-') or 'ticket'}-{digest}"
        known = next((k for k in self._keys() if k.endswith(f"-{digest}")), None)
        if known is None:
            front: dict[str, object] = {
                "title": one_line(title) or "Untitled",
                "state": self._section.states.queue[0],
                "author": AUTHOR,
            }
            front |= {"labels": _labels(labels)} if labels else {}
            front |= {"priority": priority} if priority else {}
            head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000)
            self._write(key, f"---\n{head}---\n{_harmless(body).replace(_SECTION, '')}\n")
        return self._read(known or key)

    def _unblocked(self, ticket: Ticket) -> Ticket:
        """Without the blockers that are closed. A blocker that is not there, or cannot be read, still blocks."""
        return ticket.model_copy(update={"blocked_by": tuple(k for k in ticket.blocked_by if not self._is_closed(k))})

    def _is_closed(self, key: str) -> bool:
        try:
            return _is_ticket(f"{key}.md") and self._read(key).closed
        except ConfigError:
            return False

    def _comment_lines(self, key: str, body: str, marker: str, newline: str) -> list[str]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        mark = f"<!-- df:{marker} {_signature(self._key(), key, marker)} -->"
        return [line + newline for line in (f"### {AUTHOR}, {now}", mark, *body.split("\n"), _END)]

    def _readable(self, wanted: set[str]) -> Iterator[Ticket]:
        """Those that can be read, without most that are in none of the wanted states: YAML takes its time."""
        for key in self._keys():
            try:
                state = _plain_state(self._text(key))
                if state is None or state.casefold() in wanted:
                    yield self._read(key)
            except ConfigError as error:
                _log.warning("board=%s ticket=%s outcome=dropped reason=%r", ascii(self.name), ascii(key), str(error))

    def _keys(self) -> list[str]:
        try:
            names = sorted(path.name for path in self.path.iterdir())
        except OSError as error:
            raise ConfigError(
                f"the board {str(self.path)!r} cannot be listed ({error.strerror}); create it or set `board`"
            ) from error
        return [name.removesuffix(".md") for name in names if _is_ticket(name)]

    def _require(self, key: str) -> None:
        keys = self._keys()
        if key in keys:
            return
        close = difflib.get_close_matches(key, keys, n=3, cutoff=0.4) or keys[:3]
        hint = f"did you mean {', '.join(map(repr, close))}?" if close else "it has no tickets yet; add a KEY.md file"
        raise ConfigError(f"no ticket {key!r} in the board {str(self.path)!r}; {hint}")

    def _place(self, key: str) -> str:
        return repr(str(self.path / f"{key}.md"))

    def _read(self, key: str) -> Ticket:
        ticket = _parse(key, self._text(key), self.path, self._signed)
        return ticket.model_copy(update={"board": self.name, "closed": ticket.state.casefold() in self._closed})

    def _text(self, key: str) -> str:
        """The file's text with its line ends as they are. Only a plain file of this very folder is opened."""
        place = self._place(key)
        if not key.isprintable() or len(key) > _LONGEST_KEY:
            raise ConfigError(
                f"{place}: the file name is not usable as a key; use up to {_LONGEST_KEY} printable characters"
            )
        try:
            handle = os.open(self.path / f"{key}.md", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if (self.path / f"{key}.md").is_symlink():
                raise ConfigError(f"{place} is a symbolic link; put the file itself into the board") from error
            raise ConfigError(f"{place} cannot be read: {error.strerror}; correct its permissions") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ConfigError(f"{place} is not a plain file; tickets are Markdown files")
        with open(handle, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise ConfigError(f"{place} is larger than {LARGEST_BYTES} bytes; shorten it")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{place} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error

    def _write(self, key: str, text: str) -> None:
        data = text.encode()
        if len(data) > LARGEST_BYTES:
            raise ConfigError(f"{self._place(key)} would be larger than {LARGEST_BYTES} bytes; shorten it")
        write_atomically(self.path / f"{key}.md", data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, of all processes: none takes back what another has just written."""
        ignored = self._key_file.with_name(".gitignore")
        if not ignored.exists():
            write_atomically(ignored, b"*\n")
        with file_lock(self._key_file.with_name("lock")):
            yield

    def _signed(self, key: str, marker: str, signature: str) -> bool:
        if not self._key_file.exists():
            return False
        return hmac.compare_digest(_signature(self._key_file.read_bytes(), key, marker), signature)

    @property
    def _key_file(self) -> Path:
        return self.path / ".darkfactory" / "key"

    def _key(self) -> bytes:
        """The board's own key, made at the first comment, `_alone`. Losing it makes the factory's old comments a person's."""
        if not self._key_file.exists():
            write_atomically(self._key_file, secrets.token_hex(32).encode(), mode=0o600)
        return self._key_file.read_bytes()


Signed = Callable[[str, str, str], bool]


def _signature(board_key: bytes, ticket_key: str, marker: str) -> str:
    return hmac.new(board_key, f"{ticket_key}\0{marker}".encode(), "sha256").hexdigest()[:16]


def _parse(key: str, text: str, folder: Path, signed: Signed) -> Ticket:
    """The ticket in the text of `<key>.md`. Raises ConfigError that names file, line and remedy."""
    path = folder / f"{key}.md"
    fields = _front_matter(path, text)
    body = _body(text)
    heading = _HEADING.search(body)
    title = _word(fields.get("title")) or (
        one_line(heading.group(1).rstrip(" \t#")) if heading and "title" not in fields else None
    )
    if not title:
        raise ConfigError(f"{str(path)!r} has no title; add `title: …` to its front matter or a first line `# …`")
    state = _word(fields["state"]) if "state" in fields else DEFAULT_STATE
    if not state:
        raise ConfigError(
            f"{str(path)!r} has a `state` without a value; write one, for example `state: {DEFAULT_STATE}`"
        )
    return Ticket(
        key=key,
        title=title,
        body=_storable(body).strip(),
        state=state,
        labels=tuple(_labels(_words(fields.get("labels")))),
        priority=_PRIORITIES.get((_word(fields.get("priority")) or "").lower()),
        author=_word(fields.get("author")),
        assignee=_word(fields.get("assignee")),
        repository=_word(fields.get("repository")),
        blocked_by=tuple(dict.fromkeys(_words(fields.get("blocked_by")))),
        comments=tuple(block.comment for block in _blocks(key, text.splitlines(keepends=True), signed)),
        created_at=_time(_word(fields.get("created"))),
        url=path.absolute().as_uri(),
    )


def _front_matter(path: Path, text: str) -> dict[str, _Scalar | list[_Scalar]]:
    """The fields that are texts or lists of texts; others are left out, or empty when they are required."""
    found = _FRONT_MATTER.match(text.removeprefix("\ufeff"))
    if not found:
        if re.match(r"---[ \t]*\r?\n", text.removeprefix("\ufeff")):
            raise ConfigError(f"{str(path)!r}: the front matter of line 1 never ends; close it with a line `---`")
        return {}
    if len(found.group(1)) > _LARGEST_FRONT_MATTER:
        raise ConfigError(
            f"{str(path)!r}: the front matter is larger than {_LARGEST_FRONT_MATTER} characters; shorten it"
        )
    shift = found.start(1) + text.startswith("\ufeff")
    try:
        root = yaml.compose(found.group(1), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark.line if error.problem_mark else 0) + 2
        raise ConfigError(f"{str(path)!r} line {line}: the front matter is not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"{str(path)!r}: the front matter is not valid YAML ({type(error).__name__}); correct it"
        ) from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{str(path)!r} line 2: the front matter is not a list of `name: value` lines")
    return _fields(path, root, shift)


def _fields(path: Path, root: yaml.MappingNode, shift: int) -> dict[str, _Scalar | list[_Scalar]]:
    fields: dict[str, _Scalar | list[_Scalar]] = {}
    for name, value in root.value:
        if not isinstance(name, yaml.ScalarNode):
            continue
        if name.value in fields:
            raise ConfigError(
                f"{str(path)!r} line {name.start_mark.line + 2}: {name.value!r} is there twice; remove one"
            )
        if isinstance(value, yaml.SequenceNode):
            fields[name.value] = [_scalar(item, shift) for item in value.value if isinstance(item, yaml.ScalarNode)]
        elif isinstance(value, yaml.ScalarNode):
            fields[name.value] = _scalar(value, shift)
        else:
            fields[name.value] = []
    return fields


def _scalar(node: yaml.ScalarNode, shift: int) -> _Scalar:
    text = "" if node.tag == "tag:yaml.org,2002:null" else node.value
    return _Scalar(text, node.start_mark.index + shift, node.end_mark.index + shift)


def _word(field: _Scalar | list[_Scalar] | None) -> str | None:
    return one_line(field.text) if isinstance(field, _Scalar) else None


def _words(field: _Scalar | list[_Scalar] | None) -> list[str]:
    """A list, or one text with commas."""
    texts = field.text.split(",") if isinstance(field, _Scalar) else [item.text for item in field or []]
    return [text for text in map(one_line, texts) if text]


def _labels(names: Sequence[str]) -> list[str]:
    """In one line each, lowercased, each once."""
    return list(dict.fromkeys(name.lower() for name in map(one_line, names) if name))


def _plain_state(text: str) -> str | None:
    """The state, where it is written as people mostly do; else None, and YAML has to say."""
    front = _FRONT_MATTER.match(text)
    found = _PLAIN_STATE.findall(front.group(1)) if front else []
    return found[0] if front and len(found) == 1 and not any(map(_goes_on, front.group(1).splitlines())) else None


def _goes_on(line: str) -> bool:
    """Whether a quoted text or a list may end on a later line only: what stands in between is no field."""
    return any(line.count(a) > line.count(b) for a, b in ("[]", "{}")) or any(line.count(q) % 2 for q in "\"'")


def _is_ticket(name: str) -> bool:
    """Whether a file of this name in the board's folder is a ticket."""
    return name.endswith(".md") and not name.startswith(".") and name.lower() != "readme.md" and "/" not in name


def _time(text: str | None) -> datetime | None:
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _body(text: str) -> str:
    """What stands between the front matter and the section line."""
    front = _FRONT_MATTER.match(text.removeprefix("\ufeff"))
    start = front.end() + text.startswith("\ufeff") if front else 0
    lines = text[start:].removeprefix("\ufeff").splitlines(keepends=True)
    section = _section(lines)
    return "".join(lines if section is None else lines[:section])


def _section(lines: list[str]) -> int | None:
    """The first one counts and the factory never adds a second, so pasted text cannot move the border later on."""
    return next((n for n, line in enumerate(lines) if line.rstrip() == _SECTION), None)


def _blocks(key: str, lines: list[str], signed: Signed) -> list[_Block]:
    """The comments below the section line: the factory's signed blocks, and everything else by headings."""
    section = _section(lines)
    blocks: list[_Block] = []
    at = len(lines) if section is None else section + 1
    while at < len(lines):
        block = _factory_block(key, lines, at, signed, {b.comment.marker for b in blocks}) or _person_block(lines, at)
        at = block.end
        if block.comment.body or block.comment.marker:
            blocks.append(block)
    return blocks


def _factory_block(key: str, lines: list[str], start: int, signed: Signed, seen: set[str | None]) -> _Block | None:
    """A heading by the factory, its signed marker, and text to the end line. A marker that comes again is a copy."""
    heading = _COMMENT_HEADING.fullmatch(lines[start])
    mark = _MARKER.fullmatch(lines[start + 1]) if heading and start + 1 < len(lines) else None
    if not heading or not mark or heading["author"] != AUTHOR or mark["marker"] in seen:
        return None
    if not signed(key, mark["marker"], mark["signature"]):
        return None
    end = start + 2
    while end < len(lines) and lines[end].rstrip() != _END and not _COMMENT_HEADING.fullmatch(lines[end]):
        end += 1
    closed = end < len(lines) and lines[end].rstrip() == _END
    body = _storable("".join(lines[start + 2 : end])).replace("\r\n", "\n").removesuffix("\n")
    comment = Comment(author=AUTHOR, at=_time(heading["at"].strip()), body=body, marker=mark["marker"])
    return _Block(comment, start, end + closed)


def _person_block(lines: list[str], start: int) -> _Block:
    """Text up to the next heading, with its own heading or none."""
    heading = _COMMENT_HEADING.fullmatch(lines[start])
    end = start + 1
    while end < len(lines) and not _COMMENT_HEADING.fullmatch(lines[end]):
        end += 1
    body = _storable("".join(lines[start + bool(heading) : end])).strip()
    author, at = (heading["author"], _time(heading["at"].strip())) if heading else ("unknown", None)
    return _Block(Comment(author=author, at=at, body=body), start, end)


def _separator(lines: list[str], newline: str) -> list[str]:
    """What goes between the text so far and a first or further comment."""
    joint = [newline] if lines and not lines[-1].endswith("\n") else []
    if _section(lines) is None:
        return [*joint, newline, _SECTION + newline, newline]
    return [*joint, newline]


def _harmless(body: str) -> str:
    """`body` as one comment that nothing in it can end, split or mark: it may quote a hostile ticket or a model."""
    body = _storable("\n".join(body.splitlines()).strip("\n").encode("utf-8", "replace").decode())
    body = re.sub(r"<!--(?=\s*/?d(?:f|arkfactory)\b)", "&lt;!--", body)
    return re.sub(rf"^(?={_COMMENT_HEADING.pattern}$)", "\\\\", body, flags=re.M)


def _storable(text: str) -> str:
    """Without NUL, which no database keeps."""
    return text.replace("\0", "")


def _with_field(text: str, name: str, value: str) -> str:
    """The file with another value (one line of YAML): replaced, or a line added, or front matter put before it."""
    newline = "\r\n" if "\r\n" in text else "\n"
    mark, text = ("\ufeff", text[1:]) if text.startswith("\ufeff") else ("", text)
    front = _FRONT_MATTER.match(text)
    if not front:
        return f"{mark}---{newline}{name}: {value}{newline}---{newline}{text}"
    place = _place_of(front.group(1), name)
    if place is None:
        return f"{mark}{text[: front.end(1)]}{name}: {value}{newline}{text[front.end(1) :]}"
    start, end = place[0] + front.start(1), place[1] + front.start(1)
    gap = "" if text[start - 1].isspace() else " "
    tail = newline if "\n" in text[start:end] and text[end - 1] == "\n" else ""  # a block list ends after its line
    return mark + text[:start] + gap + value + tail + text[end:]


def _place_of(front: str, name: str) -> tuple[int, int] | None:
    """Where the value of a field stands in the front matter."""
    root = yaml.compose(front, Loader=yaml.SafeLoader)
    fields = root.value if isinstance(root, yaml.MappingNode) else []
    return next((((v.start_mark.index, v.end_mark.index)) for n, v in fields if n.value == name), None)
