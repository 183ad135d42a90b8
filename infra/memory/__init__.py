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
Status = Literal["active", "superseded", "archived"]

MAX_TEXT_CHARS = 800
SHORT_CHARS = 300
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
    created_at: AwareDatetime


class Point(Noun):
    """A record as the index keeps it. `sources` and `events` are the newest first ones seen; `seen` counts all.

    `events` are the ids of the writings that made it what it is, so that none counts twice.
    """

    id: str
    record: Record
    status: Status = "active"
    seen: int = 1
    sources: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    updated_at: datetime
    last_used_at: datetime | None = None
    expires_at: datetime | None = None

    @property
    def confidence(self) -> float:
        """0 to 1; one half when nothing is known."""
        return self.record.a / (self.record.a + self.record.b)


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


class Health(Noun):
    """The owner of a home: `waiting` writings are not in the index yet, for the reason `behind` when there is one."""

    pid: int
    collection: str
    points: int
    waiting: int
    behind: str = ""
