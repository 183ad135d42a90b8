"""Memory: knowledge points that outlive a ticket, found again by meaning and by words, with or without a Qdrant server.

Writing and finding are apart. `client.Memory.record` puts a point into a folder and is done; one owner process per home
(`owner`) journals it, embeds it and puts it into the index (`index`), and answers searches over a Unix socket. The index
speaks to Qdrant by its own client, and only the transport differs: `edge` answers in this process, QDRANT_URL elsewhere.
The journal is the truth, the index can be made from it at any time. Memory never fails or holds up a ticket.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Kind = Literal["outcome", "lesson", "decision", "observation", "fact"]
Status = Literal["active", "superseded", "archived", "forgotten"]
"""`superseded`: another point says it now; `archived`: out of use; `forgotten`: only the id is left, so that it stays away."""
MarkKind = Literal["credit", "superseded", "restored", "archived", "forgotten"]

MAX_TEXT_CHARS = 800
SHORT_CHARS = 300
MOST_MEMBERS = 32
"""Points that one summary is made of."""
MOST_MARKED = 64
EVERYWHERE = "*"
"""The scope of what is true in every repository."""


class Noun(BaseModel):
    """A value that is handed on and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Noun):
    """One thing to remember, before it is admitted (`records.admit`).

    `text` stands on its own. `key` names what it is about: a later record with the same key replaces its text; without
    one, kind, scope and text are the key. `source` says who saw it (run, commit, file and line). `confirmed`: accepted
    by evidence or a person, so that other repositories may see it. `a` and `b` count what spoke for and against it.
    """

    kind: Kind
    text: str
    scope: str = Field(min_length=1, max_length=SHORT_CHARS)
    key: str = Field(default="", max_length=SHORT_CHARS)
    ticket: str = Field(default="", max_length=SHORT_CHARS)
    role: str = Field(default="", max_length=SHORT_CHARS)
    error_class: str = Field(default="", max_length=SHORT_CHARS)
    error_signature: str = Field(default="", max_length=SHORT_CHARS)
    verdict: str = Field(default="", max_length=SHORT_CHARS)
    source: str = Field(default="", max_length=SHORT_CHARS)
    confirmed: bool = False
    a: float = Field(default=1.0, gt=0, le=1e6)
    b: float = Field(default=1.0, gt=0, le=1e6)
    derived_from: tuple[str, ...] = Field(default=(), max_length=MOST_MEMBERS)
    """Ids of the points that a summary was made of."""
    level: int = Field(default=0, ge=0, le=1_000)
    """0: as it was written; a summary is one above its highest member."""
    stands_for: int = Field(default=1, ge=1)
    """Sightings that this one writing brings together."""
    created_at: AwareDatetime


class Mark(Noun):
    """What is said about points that are there; nothing changes for those that are not, except that `forgotten` stays.

    `credit` adds `a` and `b`, once per point and `source`. `superseded`, `archived` and `restored` (active again) hold from
    `at` on, whatever order they come in; `by` is the point that says it now. `forgotten` removes text and vectors for good.
    """

    kind: MarkKind
    points: tuple[str, ...] = Field(min_length=1, max_length=MOST_MARKED)
    source: str = Field(min_length=1, max_length=SHORT_CHARS)
    by: str = Field(default="", max_length=SHORT_CHARS)
    a: float = Field(default=0.0, ge=0, le=1)
    b: float = Field(default=0.0, ge=0, le=1)
    at: AwareDatetime


class Point(Noun):
    """A record as the index keeps it. `sources` and `events` are the newest first ones seen; `seen` counts all.

    `events` are the ids of the writings that made it what it is, so that none counts twice. `helped` and `hindered` are the
    credits of runs it was recalled in; `status` holds since `status_at`, by `superseded_by` where another says it now.
    """

    id: str
    record: Record
    status: Status = "active"
    status_at: datetime | None = None
    superseded_by: str = ""
    seen: int = 1
    helped: float = 0.0
    hindered: float = 0.0
    sources: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    updated_at: datetime
    last_used_at: datetime | None = None
    expires_at: datetime | None = None

    @property
    def confidence(self) -> float:
        """0 to 1; one half when nothing is known."""
        spoke_for = self.record.a + self.helped
        return spoke_for / (spoke_for + self.record.b + self.hindered)

    @property
    def subject(self) -> str:
        """What it is about: points with the same one, and no others, can contradict each other. Empty: nobody said."""
        record = self.record
        if record.error_signature:
            return record.error_signature
        if record.kind == "outcome":
            return f"ticket {record.ticket}" if record.ticket else ""
        return record.key if record.level == 0 else ""


class Wanted(Noun):
    """A search. `scope` is the asking repository: it sees its own, what holds everywhere, and what others confirmed.

    None: all scopes. `error_signature` brings up what was known about the same failure.
    """

    text: str = Field(max_length=20_000)
    scope: str | None = None
    kinds: tuple[Kind, ...] = ()
    error_signature: str = Field(default="", max_length=SHORT_CHARS)
    limit: int = Field(default=8, ge=1, le=40)


class Recalled(Noun):
    """A point that fits, with its rank value: higher is better, comparable only within one answer."""

    point: Point
    score: float


class Answer(Noun):
    """What a search found, best first. `degraded` says why memory could not be asked, so that nothing is not "none"."""

    found: tuple[Recalled, ...] = ()
    degraded: str = ""


class Ids(Noun):
    """Points by their ids."""

    ids: tuple[str, ...] = Field(default=(), max_length=4_000)


class Since(Noun):
    """Asks which points were written after a place in the journal (bytes), at most `limit` of them."""

    after: int = Field(default=0, ge=0)
    limit: int = Field(default=2_000, ge=1, le=4_000)


class Fresh(Noun):
    """Points that were written, oldest first, and the place in the journal up to which these are all."""

    ids: tuple[str, ...] = ()
    upto: int


class Cluster(Noun):
    """Active points of one scope and kind that are all near one of them, the medoid; `alike` are pairs that may say
    the same."""

    medoid: str
    members: tuple[Point, ...]
    alike: tuple[tuple[str, str], ...] = ()


class Clusters(Noun):
    found: tuple[Cluster, ...] = ()


class Health(Noun):
    """The owner of a home: `waiting` writings are not in the index yet, for the reason `behind` when there is one."""

    pid: int
    collection: str
    points: int
    waiting: int
    behind: str = ""
