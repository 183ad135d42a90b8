"""Search over a repository's commits: symbols and ranked text, in an SQLite file beside the mirror.

A cache and no database: it is keyed by git's blob ids, so a new commit costs only what it changed, any number of
processes may use it, a killed one leaves what it finished, and a damaged file is replaced by a new one.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

from infra.errors import DiskFull, InfraError
from infra.files import naming_a_full_disk
from infra.git import Mirror
from infra.llm import Frozen
from infra.slots import file_lock
from infra.symbols import Kind, symbols
from infra.syntax import is_source

VERSION = 1
"""Of the file's content; files of another version are thrown away."""
MAX_FILE_BYTES = 512 << 10
MAX_FILES = 100_000
CHUNK_LINES = 60
QUERY_WORDS = 16
"""Words of a search that count, the rarest ones."""
KEPT_COMMITS = 8
_BATCH_BYTES = 4 << 20
_COMMON_SHARE = 0.1
_LONG_LINE = 300
_WAIT_SECONDS = 30.0
_VENDORED = {"node_modules", "bower_components", "vendor", "third_party", "site-packages", ".venv", ".git"}
_GENERATED_NAME = re.compile(r"\.min\.\w+$|\.map$|[-.]lock(\.\w+)?$|_pb2(_grpc)?\.py$|\.pb\.go$")
_GENERATED_WORDS = re.compile(rb"@generated|DO NOT EDIT", re.IGNORECASE)
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""SQLITE_ERROR, too: our statements are fixed, so what does not fit them is no file of ours."""
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_SCHEMA = """
pragma journal_mode = wal;
create table blobs (id integer primary key, key text not null unique);
create table symbols (blob integer, name text, qualified text, kind text, first integer, last integer, signature text);
create index symbols_by_name on symbols (name collate nocase);
create table chunks (id integer primary key, blob integer, first integer, last integer);
create virtual table words using fts5(names, body, content='', tokenize="unicode61 separators '_'");
insert into words (words, rank) values ('rank', 'bm25(4.0, 1.0)');
create virtual table vocabulary using fts5vocab(words, row);
create table commits (id integer primary key, sha text not null unique);
create table files (commit_id integer, blob integer, path text, primary key (commit_id, blob, path)) without rowid;
"""
_MATCHES = """
select (select min(path) from files where commit_id = :commit and blob = chunks.blob), blobs.key, first, last, -score
from (select rowid as chunk, rank as score from words where words match :words order by rank limit :limit)
join chunks on chunks.id = chunk join blobs on blobs.id = chunks.blob order by score
"""
_NAMED = """
select path, name, qualified, kind, first, last, signature from symbols
join files on files.blob = symbols.blob and commit_id = :commit
where {name} and '.' || qualified like '%.' || :pattern escape '\\'
order by length(name), path, first limit :limit
"""

Answer = TypeVar("Answer")


class Stats(Frozen):
    """What bringing the index to a commit took. `parsed` blobs were new."""

    files: int
    parsed: int = 0
    seconds: float = 0.0


class Place(Frozen):
    """Where a commit defines something. Lines are 1-based and inclusive; `signature` is the first one."""

    path: str
    name: str
    qualified_name: str
    kind: Kind
    start_line: int
    end_line: int
    signature: str


class Hit(Frozen):
    """A piece of a file that a search found; a higher score is a better match."""

    path: str
    start_line: int
    end_line: int
    text: str
    score: float


class CodeIndex:
    """The index of one mirror. Every question indexes its commit first, where that was not done.

    Left out: binary, vendored, generated and minified files and those above MAX_FILE_BYTES; more than MAX_FILES files.
    Methods block. Raises DiskFull, and InfraError where the file cannot be used and nothing here mends that.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._folder = mirror.path.with_name(f"{mirror.path.name}.code")

    def update(self, sha: str) -> Stats:
        """Index a commit; only blobs that no earlier commit had are parsed."""
        known = self._answer(lambda database: _file_count(database, sha))
        if known is not None:
            return Stats(files=known)
        with file_lock(self._folder / "lock"):
            if self._answer(_outgrown):
                self._forget(self._file())
            return self._answer(lambda database: self._index(database, sha))

    def symbols(self, sha: str, pattern: str, limit: int = 20) -> list[Place]:
        """Definitions by name or end of the qualified name, in any case; `*` and `?` stand for letters."""
        like = re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%").replace("?", "_")
        exact = like.replace("\\_", "_") == pattern
        by_name = "name = :name collate nocase" if exact else "name like :name escape '\\'"
        name = (pattern if exact else like).rpartition(".")[2]
        statement = _NAMED.format(name=by_name)

        def named(database: sqlite3.Connection, commit: int) -> list[Place]:
            asked = {"commit": commit, "name": name, "pattern": like, "limit": limit}
            rows = database.execute(statement, asked)
            return [Place(**dict(zip(Place.model_fields, row, strict=True))) for row in rows]

        return self._about(sha, named)

    def search(self, sha: str, text: str, limit: int = 20) -> list[Hit]:
        """The pieces of files that share most with the rarest words of `text` (BM25; names of definitions count four
        times), best first."""

        def found(database: sqlite3.Connection, commit: int) -> list[_Match]:
            wanted = " OR ".join(f'"{word}"' for word in _rarest(database, split_words(text)))
            return _matches(database, commit, wanted, limit)

        return [hit for hit, _ in self._read(self._about(sha, found))]

    def references(self, sha: str, name: str, limit: int = 100) -> list[Hit]:
        """The lines on which the identifier `name` stands, in the order of paths."""

        def found(database: sqlite3.Connection, commit: int) -> list[_Match]:
            return _matches(database, commit, f'"{" ".join(split_words(name))}"', 4 * limit)

        spelled = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
        lines = [
            Hit(path=hit.path, start_line=number, end_line=number, text=line, score=hit.score)
            for hit, texts in self._read(self._about(sha, found))
            for number, line in enumerate(texts, hit.start_line)
            if spelled.search(line)
        ]
        return sorted(lines, key=lambda hit: (hit.path, hit.start_line))[:limit]

    def _read(self, matches: list[_Match]) -> Iterator[tuple[Hit, list[str]]]:
        """Each match with its lines, from git."""
        blobs = list(dict.fromkeys(match.blob for match in matches))
        texts = dict(zip(blobs, (_lines(raw) for raw in self._mirror.contents(blobs)), strict=True))
        for match in matches:
            lines = texts[match.blob][match.start_line - 1 : match.end_line]
            yield Hit(path=match.path, start_line=match.start_line, end_line=match.end_line, text="\n".join(lines),
                      score=match.score), lines  # fmt: skip

    def _about(self, sha: str, question: Callable[[sqlite3.Connection, int], Answer]) -> Answer:
        """The answer about a commit, which is indexed first where the file does not know it."""

        def asked(database: sqlite3.Connection) -> Answer | None:
            commit = _commit(database, sha)
            return question(database, commit) if commit is not None else None

        for _ in range(3):
            answer = self._answer(asked)
            if answer is not None:
                return answer
            self.update(sha)
        raise InfraError(f"the code index {str(self._folder)!r} is replaced again and again; delete it and run again")

    def _answer(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Ask the current file; a damaged one is thrown away and the question put to a new, empty one."""
        file = self._file()
        try:
            return _asked(file, question)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                raise _translated(file, error) from error
        self._forget(file)
        file = self._file()
        try:
            return _asked(file, question)
        except sqlite3.DatabaseError as error:
            raise _translated(file, error) from error

    def _file(self) -> Path:
        """The newest file of this version, made when there is none. It is whole when it has its name."""
        known = sorted(self._folder.glob(f"{VERSION}-*.sqlite"))
        if known:
            return known[-1]
        with naming_a_full_disk("the code index"):
            self._folder.mkdir(parents=True, exist_ok=True)
        # a name is never used again: SQLite would take the journal of the old file for the new one's
        file = self._folder / f"{VERSION}-{time.time_ns():020}.sqlite"
        draft = file.with_suffix(".new")
        try:
            with closing(sqlite3.connect(draft)) as database:
                database.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise _translated(draft, error) from error
        return draft.rename(file)

    def _forget(self, file: Path) -> None:
        for part in self._folder.glob(f"{file.name}*"):
            part.unlink(missing_ok=True)

    def _index(self, database: sqlite3.Connection, sha: str) -> Stats:
        """Parse what is new, a few files per transaction, and write the commit last. The caller holds the lock."""
        started = time.monotonic()
        if (known := _file_count(database, sha)) is not None:
            return Stats(files=known)
        current = {path: _key(path, blob) for path, blob in self._mirror.blobs(sha).items() if _is_own(path)}
        current = dict(list(current.items())[:MAX_FILES])
        ids: dict[str, int] = dict(database.execute("select key, id from blobs"))
        fresh = {key: path for path, key in current.items() if key not in ids}
        for batch in self._batches(fresh):
            with _transaction(database):
                ids |= {key: _add(database, key, fresh[key], raw) for key, raw in batch.items()}
        with _transaction(database):
            _add_commit(database, sha, [(ids[key], path) for path, key in current.items()])
        for file in set(self._folder.glob("*.sqlite*")):
            if not file.name.startswith(self._file().name):  # of another version, or made at the same moment
                file.unlink(missing_ok=True)
        return Stats(files=len(current), parsed=len(fresh), seconds=time.monotonic() - started)

    def _batches(self, fresh: Mapping[str, str]) -> Iterator[dict[str, bytes]]:
        """The contents of blobs by key, a few megabytes at a time; those that are too big come empty."""
        batch: list[str] = []
        used = 0
        for key, size in zip(fresh, self._mirror.sizes([_blob(key) for key in fresh]), strict=True):
            if size > MAX_FILE_BYTES:
                yield {key: b""}
                continue
            if used + size > _BATCH_BYTES:
                yield self._contents(batch)
                batch, used = [], 0
            batch.append(key)
            used += size
        yield self._contents(batch)

    def _contents(self, keys: list[str]) -> dict[str, bytes]:
        return dict(zip(keys, self._mirror.contents([_blob(key) for key in keys]), strict=True))


class _Match(Frozen):
    """A chunk that a search found, before its text is read."""

    path: str
    blob: str
    start_line: int
    end_line: int
    score: float


def split_words(text: str) -> list[str]:
    """The words of prose and code in lower case, each once, as the index splits them: snake_case and camelCase apart."""
    found = re.findall(r"[^\W_]+", _spaced(text).lower())
    return list(dict.fromkeys(word for word in found if len(word) > 1))


def _spaced(text: str) -> str:
    return _WORD_ENDS.sub(" ", text)


def _lines(raw: bytes) -> list[str]:
    return raw.decode(errors="replace").split("\n")


def _key(path: str, blob: str) -> str:
    """The name of a blob in the index: how it is parsed depends on the file's ending, too."""
    return blob + (PurePosixPath(path).suffix if is_source(path) else "")


def _blob(key: str) -> str:
    return key.partition(".")[0]


def _is_own(path: str) -> bool:
    """Whether people of the repository wrote the file, by its name."""
    return _VENDORED.isdisjoint(path.split("/")) and not _GENERATED_NAME.search(path)


def _is_written(raw: bytes) -> bool:
    """Whether people wrote the content: no binary, nothing generated or minified."""
    head = raw[:8_000]
    return b"\0" not in head and not _GENERATED_WORDS.search(head[:1_000]) and len(raw) < _LONG_LINE * (
        1 + raw.count(b"\n")
    )  # fmt: skip


def _add(database: sqlite3.Connection, key: str, path: str, raw: bytes) -> int:
    """Add a blob with its symbols and chunks, or alone when there is nothing in it to find."""
    blob = database.execute("insert into blobs (key) values (?)", (key,)).lastrowid or 0
    if not raw or not _is_written(raw):
        return blob
    found = symbols(path, raw)
    database.executemany("insert into symbols values (?, ?, ?, ?, ?, ?, ?)", [(blob, *symbol) for symbol in found])
    names: dict[int, list[str]] = {}
    for symbol in found:
        names.setdefault(symbol.start_line, []).append(symbol.qualified_name)
    lines = _lines(raw)
    for first, last in _chunks(len(lines), {s.start_line for s in found if s.kind != "constant"}):
        said = " ".join(name for n in range(first, last + 1) for name in names.get(n, ()))
        chunk = database.execute(
            "insert into chunks (blob, first, last) values (?, ?, ?)", (blob, first, last)
        ).lastrowid
        database.execute(
            "insert into words (rowid, names, body) values (?, ?, ?)",
            (chunk, _spaced(said), _spaced("\n".join(lines[first - 1 : last]))),
        )
    return blob


def _chunks(count: int, starts: set[int]) -> Iterator[tuple[int, int]]:
    """Line ranges that make up a file: each begins with a definition or after CHUNK_LINES lines."""
    first = 1
    for line in range(2, count + 2):
        if line > count or line in starts or line - first >= CHUNK_LINES:
            yield first, line - 1
            first = line


def _commit(database: sqlite3.Connection, sha: str) -> int | None:
    row = database.execute("select id from commits where sha = ?", (sha,)).fetchone()
    return row[0] if row else None


def _file_count(database: sqlite3.Connection, sha: str) -> int | None:
    """How many files a commit has, or None when it is not indexed."""
    commit = _commit(database, sha)
    if commit is None:
        return None
    return int(database.execute("select count(*) from files where commit_id = ?", (commit,)).fetchone()[0])


def _add_commit(database: sqlite3.Connection, sha: str, files: list[tuple[int, str]]) -> None:
    """Write a commit and its files, and forget the oldest commits."""
    commit = database.execute("insert into commits (sha) values (?)", (sha,)).lastrowid or 0
    database.executemany("insert into files values (?, ?, ?)", [(commit, blob, path) for blob, path in sorted(files)])
    database.execute("delete from files where commit_id <= ?", (commit - KEPT_COMMITS,))
    database.execute("delete from commits where id <= ?", (commit - KEPT_COMMITS,))


def _outgrown(database: sqlite3.Connection) -> bool:
    """Whether most of the file is about blobs of commits that are long gone."""
    (blobs,) = database.execute("select count(*) from blobs").fetchone()
    (used,) = database.execute("select count(*) from files where commit_id = (select max(id) from commits)").fetchone()
    return bool(used and blobs > 3 * used + 10_000)


def _rarest(database: sqlite3.Connection, words: list[str]) -> list[str]:
    """The words of a search that tell most: the rarest that occur, without those that are in every tenth chunk."""
    total = database.execute("select coalesce(max(id), 0) from chunks").fetchone()[0]
    counted = [
        (database.execute("select doc from vocabulary where term = ?", (word,)).fetchone(), word) for word in words
    ]
    known = sorted((row[0], word) for row, word in counted if row)
    rare = [(count, word) for count, word in known if count <= max(_COMMON_SHARE * total, 20)]
    return [word for _, word in (rare or known)[:QUERY_WORDS]]


def _matches(database: sqlite3.Connection, commit: int, words: str, limit: int) -> list[_Match]:
    """The best chunks of a commit; the file also knows other commits' chunks, so more are asked for when these crowd."""
    if not words.strip('"'):
        return []
    for asked in (2 * limit + 20, 40 * limit + 400, -1):
        rows = database.execute(_MATCHES, {"commit": commit, "words": words, "limit": asked}).fetchall()
        own = [row for row in rows if row[0] is not None]
        if len(own) >= limit or len(rows) < asked:
            break
    return [_Match(path=p, blob=_blob(k), start_line=a, end_line=b, score=s) for p, k, a, b, s in own[:limit]]


def _asked(file: Path, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
    with closing(sqlite3.connect(file, timeout=_WAIT_SECONDS, isolation_level=None)) as database:
        database.execute("pragma synchronous = normal")
        return question(database)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; an error or a killed process leaves what was before."""
    with database:
        database.execute("begin immediate")
        yield


def _translated(file: Path, error: sqlite3.DatabaseError) -> InfraError:
    if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
        return DiskFull(f"no space left for the code index {str(file)!r}; free some and run again")
    return InfraError(f"the code index {str(file)!r} cannot be used: {error}; delete it and run again")
