"""What a consolidation does, as a plan: what is the same thing, what a summary may say, and which points it stands for.

Pure rules. Nothing is lost by a summary: every number, path and name of a point it stands for is in its text, or the point
stays as it is; and all points stay readable by their ids.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from infra.memory import MAX_TEXT_CHARS, MOST_MARKED, Cluster, Mark, Noun, Point, Record
from infra.memory.records import Refused, admit, point_id

VERSION = "1"
"""Part of every summary's identity; another one makes other summaries of the same points."""
FEWEST = 3
"""Points that are worth a summary."""
_SUFFIX = " (one of "
_TOKEN = re.compile(r"[\w./:\\-]*\w")
_NAME = re.compile(r"\d|_|[/\\]|\w\.\w|[a-z][A-Z]|[A-Z]{2}")
_NEGATION = re.compile(r"\b(?:not|no|none|never|nothing|without|cannot|neither|nor)\b|n't\b")
"""Words that turn a sentence around, and that no search weighs."""

How = Literal["merged", "extracted", "summarised"]


class Summary(Noun):
    """A point to be written, and the points that it stands for from then on."""

    how: How
    record: Record
    replaces: tuple[str, ...] = Field(min_length=1)

    @property
    def id(self) -> str:
        return point_id(self.record)


class Retired(Noun):
    """A point that a newer one about the same subject contradicts."""

    old: str
    new: str


class Plan(Noun):
    """One consolidation, and its undo record. `upto` is the place in the journal that it looked up to; `again` are points to
    look at the next time, too; `refused` says what of a model's words was left out."""

    id: str
    at: AwareDatetime
    upto: int
    looked_at: int = 0
    written: tuple[Summary, ...] = ()
    retired: tuple[Retired, ...] = ()
    archived: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    usd: float = 0.0

    @property
    def acts(self) -> bool:
        return bool(self.written or self.retired or self.archived)

    def marks(self) -> list[Mark]:
        """What is said about points, once the summaries are in the index."""
        by = [(summary.replaces, summary.id) for summary in self.written]
        by += [((each.old,), each.new) for each in self.retired]
        said = [Mark(kind="superseded", points=points, by=name, source=self.id, at=self.at) for points, name in by]
        return said + [Mark(kind="archived", points=part, source=self.id, at=self.at) for part in _parts(self.archived)]

    def undo(self, at: datetime, points: Iterable[Point]) -> list[Mark]:
        """Marks that bring back what was: of `points`, those that are as this plan left them."""
        own = {summary.id for summary in self.written}
        by = own | {each.new for each in self.retired}
        back = [p.id for p in points if p.superseded_by in by or (p.status == "archived" and p.id in self.archived)]
        source = f"revert {self.id}"
        marks = [Mark(kind="restored", points=part, source=source, at=at) for part in _parts(back)]
        return marks + [Mark(kind="archived", points=part, source=source, at=at) for part in _parts(sorted(own))]

    @property
    def touched(self) -> tuple[str, ...]:
        """All points that it put aside."""
        replaced = [name for summary in self.written for name in summary.replaces]
        return tuple(dict.fromkeys([*replaced, *(each.old for each in self.retired), *self.archived]))


class Claim(Noun):
    """One sentence of a model about some members of a cluster."""

    text: str
    members: tuple[str, ...]


def names_in(text: str) -> set[str]:
    """Numbers, paths and identifiers: what a summary must neither lose nor make up."""
    return {token for token in _TOKEN.findall(text) if _NAME.search(token)}


def merges(cluster: Cluster) -> list[Summary]:
    """One summary for each group of points that say the same thing: nearly the same words, one subject, the
    same names and as many negations."""
    known = {point.id: point for point in cluster.members}
    groups: list[set[str]] = []
    for one, other in cluster.alike:
        if _same(known[one], known[other]):
            near = [group for group in groups if one in group or other in group]
            groups = [group for group in groups if group not in near] + [{one, other}.union(*near)]
    made = [
        _summary("merged", _newest(known[n] for n in group).record.text, [known[n] for n in group]) for group in groups
    ]
    return [each for each in made if each is not None]


def _same(one: Point, other: Point) -> bool:
    told, other_told = one.record.text, other.record.text
    return (
        one.subject == other.subject
        and names_in(told) == names_in(other_told)
        and Counter(_NEGATION.findall(told.casefold())) == Counter(_NEGATION.findall(other_told.casefold()))
    )


def _newest(points: Iterable[Point]) -> Point:
    return max(points, key=lambda p: (p.updated_at, p.id))


def extract(cluster: Cluster) -> Summary | None:
    """The medoid's own words, how often it was seen, and the names that the others add. Stands for the members whose names
    it has room for; None when these are too few."""
    medoid = _base(cluster)
    text = medoid.record.text.partition(_SUFFIX)[0]
    covered, added = [medoid], set[str]()
    for point in sorted(cluster.members, key=lambda p: (len(names_in(p.record.text)), p.id)):
        wanted = added | (names_in(point.record.text) - names_in(text))
        if point is not medoid and len(_extracted(text, [*covered, point], wanted)) <= MAX_TEXT_CHARS:
            covered, added = [*covered, point], wanted
    return _summary("extracted", _extracted(text, covered, added), covered) if len(covered) >= FEWEST else None


def _base(cluster: Cluster) -> Point:
    """The medoid, or the newest that is no summary: a summary of a summary would repeat its words about itself."""
    medoid = next(point for point in cluster.members if point.id == cluster.medoid)
    plain = [point for point in cluster.members if point.record.level == 0]
    return medoid if medoid.record.level == 0 or not plain else _newest(plain)


def _extracted(text: str, covered: Sequence[Point], added: set[str]) -> str:
    tally = Counter(point.record.verdict for point in covered if point.record.verdict)
    counted = "".join(f", {count} {verdict}" for verdict, count in sorted(tally.items()))
    also = f"; also named: {' '.join(sorted(added))}" if added else ""
    return f"{text}{_SUFFIX}{_sightings(covered)} notes alike{counted}{also})"


def worth_asking(cluster: Cluster) -> bool:
    """Whether a model may find something: enough points, or two of one subject that may contradict each other."""
    subjects = Counter(point.subject for point in cluster.members if point.subject)
    return len(cluster.members) >= FEWEST or max(subjects.values(), default=0) > 1


def checked(cluster: Cluster, claims: Sequence[Claim]) -> tuple[Summary | None, list[str]]:
    """The summary that a model's claims make, and why claims were left out. Only members that a good claim cites are
    replaced, and only those whose every name is in the text."""
    known = {point.id: point for point in cluster.members}
    good, refused = [], []
    for claim in claims:
        reason = _objection(claim, known)
        refused += [f"{reason}: {claim.text[:120]!r}"] if reason else []
        good += [claim] if not reason else []
    text = " ".join(claim.text.strip() for claim in good)
    cited = {name for claim in good for name in claim.members}
    kept = [known[name] for name in sorted(cited) if names_in(known[name].record.text) <= names_in(text)]
    if len(kept) < 2 or len(text) > MAX_TEXT_CHARS:
        return None, [*refused, "the claims bring no two members together, or are too long"]
    return _summary("summarised", text, kept), refused


def _objection(claim: Claim, known: dict[str, Point]) -> str:
    if not claim.members or not set(claim.members) <= known.keys():
        return "a claim cites no member, or one that is not there"
    made_up = names_in(claim.text) - {name for m in claim.members for name in names_in(known[m].record.text)}
    return f"no member that it cites has {sorted(made_up)!r}" if made_up else ""


def retirements(cluster: Cluster, pairs: Iterable[Retired]) -> tuple[list[Retired], list[str]]:
    """Those of a model's contradictions that may be acted on: one subject, and the new one is the newer."""
    known = {point.id: point for point in cluster.members}
    good, refused = [], []
    for each in pairs:
        old, new = known.get(each.old), known.get(each.new)
        if old and new and old.subject and old.subject == new.subject and old.updated_at < new.updated_at:
            good.append(each)
        else:
            refused.append(f"{each.new[:8]} may not retire {each.old[:8]}: not one subject, or not newer")
    return good, refused


def _summary(how: How, text: str, members: Sequence[Point]) -> Summary | None:
    """None when the text says too little to be let in."""
    newest, same = _newest(members), sorted(members, key=lambda point: point.id)
    told = "\n".join([VERSION, *(f"{point.id} {point.seen}" for point in same)])
    record = Record(
        kind=newest.record.kind, text=text, scope=newest.record.scope,
        key=f"summary:{hashlib.sha256(told.encode()).hexdigest()[:32]}",
        ticket=_common(point.record.ticket for point in same), role=_common(point.record.role for point in same),
        error_class=_common(point.record.error_class for point in same),
        error_signature=_common(point.record.error_signature for point in same),
        verdict=_common(point.record.verdict for point in same), source=f"{_sightings(same)} notes, last: {_source(newest)}"[:300],
        confirmed=all(point.record.confirmed for point in same),
        a=_weight(point.record.a + point.helped for point in same),
        b=_weight(point.record.b + point.hindered for point in same),
        derived_from=tuple(point.id for point in same), level=1 + max(point.record.level for point in same),
        stands_for=_sightings(same), created_at=newest.updated_at,
    )  # fmt: skip
    try:
        return Summary(how=how, record=admit(record), replaces=record.derived_from)
    except Refused:
        return None


def _source(point: Point) -> str:
    return point.sources[0] if point.sources else point.record.ticket or "unknown"


def _sightings(points: Sequence[Point]) -> int:
    """Without those that another one of them already stands for."""
    inside = {name for point in points for name in point.record.derived_from}
    return max(sum(point.seen for point in points if point.id not in inside), 1)


def _weight(counts: Iterable[float]) -> float:
    """What spoke for all of them together, each of which began with 1."""
    return min(max(1 + sum(count - 1 for count in counts), 0.1), 1e6)


def _common(values: Iterable[str]) -> str:
    """The one value that all have, else nothing."""
    found = set(values)
    return found.pop() if len(found) == 1 else ""


def _parts(names: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(names[n : n + MOST_MARKED]) for n in range(0, len(names), MOST_MARKED)]
