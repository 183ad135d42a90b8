"""Which points belong together: how near two texts are, and clusters in which every point is near the one in the middle."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from infra.memory import MOST_MEMBERS, Cluster, Point
from infra.memory.embedding import Words

NEAR_BY_MEANING = 0.70
NEAR_BY_WORDS = 0.50
"""Cosine of BM25's word weights where there is no dense vector. Measured on the Hadoop tracker of docs/memory.md: at 0.50
none of 3,000 random pairs of one tracker is near, and 31 % of the pairs that people marked as the same bug are."""
MOST_COMPARED = 8 * MOST_MEMBERS
"""Of one group of joined points, each of which is compared with each: 2,500 that say nearly the same took the index minutes
and a gigabyte, for a cluster of MOST_MEMBERS."""
ALIKE_BY_MEANING = 0.92
"""Below it, pairs that say the same are mixed with pairs that are only about the same."""
ALIKE_BY_WORDS = 0.999
"""The same words but for order, case, endings and fillers: in a long text one other word is a cosine of 0.97."""


class Vectors(NamedTuple):
    """Of one point. `dense` is empty where the embedder knows only words."""

    dense: Sequence[float]
    words: Words

    @property
    def near(self) -> float:
        """From which similarity on two points belong together."""
        return NEAR_BY_MEANING if self.dense else NEAR_BY_WORDS

    @property
    def alike(self) -> float:
        """From which similarity on they may say the same."""
        return ALIKE_BY_MEANING if self.dense else ALIKE_BY_WORDS


class Placed(NamedTuple):
    """A point with its vectors."""

    point: Point
    vectors: Vectors


def similarity(one: Vectors, other: Vectors) -> float:
    """0 to 1: cosine of the dense vectors, else of the word weights, in which shared rare spellings weigh like all words."""
    if one.dense and other.dense:
        return _cosine(one.dense, other.dense)
    left = dict(zip(one.words.indices, one.words.values, strict=True))
    right = dict(zip(other.words.indices, other.words.values, strict=True))
    keys = sorted(left.keys() | right.keys())
    return _cosine([left.get(k, 0.0) for k in keys], [right.get(k, 0.0) for k in keys])


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    size = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / size if size else 0.0


def clusters_of(placed: Mapping[str, Placed], pairs: Iterable[tuple[str, str]]) -> list[Cluster]:
    """The clusters that these pairs of near points make, in a fixed order. A member that is only near to a neighbour of the
    medoid is left out, so that clusters do not chain; at most MOST_MEMBERS, the nearest ones."""
    groups = (names[:MOST_COMPARED] for names in _joined(pairs))
    found = [_around_medoid({name: placed[name] for name in names}) for names in groups]
    return sorted((each for each in found if len(each.members) > 1), key=lambda each: each.medoid)


def _joined(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for one, other in pairs:
        parent[max(root(one), root(other))] = min(root(one), root(other))
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(parent):
        groups[root(name)].append(name)
    return list(groups.values())


def _around_medoid(members: Mapping[str, Placed]) -> Cluster:
    near = {
        frozenset(pair): similarity(members[pair[0]].vectors, members[pair[1]].vectors)
        for pair in combinations(members, 2)
    }
    medoid = max(sorted(members), key=lambda n: math.fsum(s for pair, s in near.items() if n in pair))
    others = sorted((n for n in members if n != medoid), key=lambda n: (-near[frozenset((n, medoid))], n))
    limit, same = members[medoid].vectors.near, members[medoid].vectors.alike
    kept = [medoid, *(n for n in others if near[frozenset((n, medoid))] >= limit)][:MOST_MEMBERS]
    alike = [pair for pair in combinations(sorted(kept), 2) if near[frozenset(pair)] >= same]
    return Cluster(medoid=medoid, members=tuple(members[n].point for n in sorted(kept)), alike=tuple(alike))
