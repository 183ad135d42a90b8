"""Choosing: who may start, in which order, while there is room; cycles are found and small tickets share a session."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.boards import Comment, Ticket
from infra.sections import AnyBoard, DispatchSection, RepositorySection, States
from tasks.choosing import MOST_CYCLES, RunningTicket, alike, batches, cycles, order, refusal, room

TICKETS = Path(__file__).parents[2] / ".." / "shared" / "contracts" / "tickets"
DAY = datetime(2026, 3, 1, tzinfo=UTC)
OPEN = AnyBoard()


def _ticket(key: str = "T-1", **fields: Any) -> Ticket:
    return Ticket(**{"key": key, "title": "Mend the cart", "body": "It is broken.", "state": "todo", **fields})


def _shared(*path: str) -> Path:
    found = TICKETS.joinpath(*path)
    if not found.exists():
        pytest.skip("these tickets are not part of this repository; they lie in the folder `shared` beside it")
    return found


def _rows(*path: str) -> list[dict[str, Any]]:
    with gzip.open(_shared(*path), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key": " "}, "it has no key"),
        ({"title": ""}, "it has no title"),
        ({"state": "\n"}, "it has no state"),
        ({"title": "", "state": ""}, "it has no title and no state"),
        ({"closed": True}, "it is closed"),
        ({"state": "DONE "}, "it is closed (state 'DONE ')"),
        ({"state": "in progress"}, "its state 'in progress' is none of the queue's ('todo', 'agent queue')"),
        ({"blocked_by": ("T-0",)}, "it is blocked by 'T-0'"),
        ({"blocked_by": tuple(f"B-{n}" for n in range(9))}, "and 4 more"),
        *(({"title": title}, "says nothing") for title in ("--help", "-h  --verbose", "???", "--file=x.md", "-", "\u200b", "🙂")),
    ],
)  # fmt: skip
def test_a_ticket_that_cannot_be_worked_on_is_refused(fields: dict[str, Any], reason: str) -> None:
    """SM3."""
    assert reason in (refusal(_ticket(**fields), OPEN) or "")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"state": "ToDo"},
        {"state": " agent  Queue"},
        {"title": "--help is broken"},
        {"title": "-x y"},
        {"title": "Ünïcode"},
        {"title": "修理"},
        {"author": None, "priority": None, "body": ""},
    ],
)
def test_an_ordinary_ticket_is_eligible(fields: dict[str, Any]) -> None:
    assert refusal(_ticket(**fields), OPEN) is None


def test_a_closed_state_is_never_a_queue() -> None:
    """SM3: a terminal state wins over a careless configuration, which is refused where it says the same word."""
    with pytest.raises(ValidationError, match="'done' is of the `queue` and `closed`"):
        States(queue=("todo", "done"))
    board = AnyBoard(states=States(queue=("todo", " done ")))
    assert "closed" in (refusal(_ticket(state="done"), board) or "")


def test_a_queue_without_a_state_is_refused() -> None:
    with pytest.raises(ValidationError, match="names no state"):
        States(queue=(" ",))


@pytest.mark.parametrize(
    ("required", "labels", "eligible"),
    [
        ((), (), True),
        (("Agent",), ("agent", "bug"), True),
        (("Dark Factory ",), ("darkfactory",), True),
        (("agent", "small"), ("agent", "small"), True),
        (("agent", "small"), ("agent",), False),
        (("agent",), (), False),
        (("agent",), ("agents",), False),
        (("",), ("",), False),
        ((" ", "agent"), ("agent",), False),
        (("Caf\u00e9",), ("cafe\u0301",), True),
    ],
)
def test_all_required_labels_are_needed_without_case_and_spaces(
    required: tuple[str, ...], labels: tuple[str, ...], eligible: bool
) -> None:
    """SM3: a blank required label matches nothing."""
    found = refusal(_ticket(labels=labels), AnyBoard(required_labels=required))
    assert (found is None) == eligible
    if found:
        assert "correct `required_labels` in factory.yaml" in found or "the required label '" in found


@pytest.mark.parametrize(
    ("allowed", "author", "eligible"),
    [
        ((), None, True),
        ((), "mallory", True),
        (("Ann",), "ann ", True),
        (("ann", "bob"), "BOB", True),
        (("ann",), "annabel", False),
        (("ann",), None, False),
        (("",), None, False),
        (("",), "", False),
        (("kate", "mass"), "\u212aate", False),
        (("kate", "mass"), "ma\u00df", False),
        (("J\u00f6rg",), "Jo\u0308rg", True),
        (("bot",), "bot[bot]", False),
    ],
)
def test_only_allowed_authors_when_any_are_named(allowed: tuple[str, ...], author: str | None, eligible: bool) -> None:
    """SM3; signs that Unicode folds into a listed name are somebody else's."""
    found = refusal(_ticket(author=author), AnyBoard(allowed_authors=allowed))
    assert (found is None) == eligible
    assert eligible or "allowed authors" in str(found)


def test_a_ticket_that_is_routed_nowhere_is_refused_once_routing_was_asked() -> None:
    assert refusal(_ticket(), OPEN) is None
    assert refusal(_ticket(), OPEN, repository="shop") is None
    assert refusal(_ticket(), OPEN, repository=None) == "it is routed to no repository"
    assert "closed" in (refusal(_ticket(closed=True), OPEN, repository=None) or "")


def test_a_refusal_is_one_short_line() -> None:
    long = "-x\n" * 100_000
    for fields in ({"title": long}, {"state": long}, {"author": long}, {"state": long, "closed": True}):
        found = refusal(_ticket(**fields), AnyBoard(allowed_authors=("ann",)))
        assert found is not None
        assert "\n" not in found
        assert len(found) < 300


def test_priority_then_age_then_key_decide() -> None:
    """SM4: priority 1..4, then the rest; ties by oldest creation, then key."""
    expected = [
        _ticket("Z-1", priority=1),
        _ticket("Y-1", priority=2, created_at=DAY),
        _ticket("Y-0", priority=2, created_at=DAY + timedelta(seconds=1)),
        _ticket("A-0", priority=2),
        _ticket("A-3", priority=4, created_at=DAY + timedelta(days=400)),
        _ticket("C-1", priority=0, created_at=DAY - timedelta(days=9)),
        _ticket("C-2", priority=9, created_at=DAY - timedelta(days=5)),
        _ticket("C-3", created_at=DAY.replace(tzinfo=None)),
        _ticket("C-4", created_at=DAY.astimezone(timezone(timedelta(hours=-5))) + timedelta(hours=1)),
        _ticket("T-2"),
        _ticket("T-010"),
        _ticket("T-10"),
        _ticket("T-10a"),
        _ticket("T-11"),
        _ticket("T-" + "9" * 5_000),
    ]
    assert order(reversed(expected)) == expected


def _any_ticket(chance: random.Random, number: int) -> Ticket:
    return _ticket(
        f"{chance.choice('ABab')}-{number:0{chance.randint(1, 3)}}",
        priority=chance.choice([None, 0, 1, 2, 3, 4, 5]),
        created_at=chance.choice([None, DAY, DAY + timedelta(hours=chance.randint(0, 3))]),
        state=chance.choice(["todo", "Todo", "agent queue"]),
    )


def test_the_order_is_total_and_the_same_for_all_pages_and_shuffles() -> None:
    """SM4: stable across pages."""
    chance = random.Random(4)
    for _ in range(200):
        tickets = [
            *{each.key: each for each in (_any_ticket(chance, chance.randint(1, 3)) for _ in range(25))}.values()
        ]
        expected = order(tickets)
        shuffled = chance.sample(tickets, len(tickets))
        cut = chance.randint(0, len(tickets))
        assert order(shuffled) == expected
        assert order([*order(shuffled[cut:]), *order(shuffled[:cut])]) == expected
        for one, other in itertools.pairwise(expected):
            assert order([other, one]) == [one, other]


def test_ten_thousand_tickets_are_filtered_and_ordered_in_well_under_a_second(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chance = random.Random(5)
    tickets = [_any_ticket(chance, number) for number in range(10_000)]
    board = AnyBoard(required_labels=("agent",))
    labelled = [ticket.model_copy(update={"labels": ("agent",)}) for ticket in tickets]
    begun = time.perf_counter()
    ordered = order(ticket for ticket in labelled if refusal(ticket, board) is None)
    took = time.perf_counter() - begun
    with capsys.disabled():
        print(f"\n10,000 tickets filtered and ordered in {took:.2f} s")
    assert len(ordered) == 10_000
    assert took < 2


def _running(state: str = "in progress", repository: str = "shop", count: int = 1) -> list[RunningTicket]:
    return [RunningTicket(board="b", key=f"R-{n}", repository=repository, state=state) for n in range(count)]


def _repositories(**caps: int | None) -> dict[str, RepositorySection]:
    return {name: RepositorySection(path=Path(name), max_running=cap) for name, cap in caps.items()}


def test_with_cap_n_and_r_running_n_minus_r_start() -> None:
    """SM5."""
    for running, cap in itertools.product(range(6), range(1, 5)):
        left, started = room(_running(count=running), DispatchSection(max_running=cap), {}), 0
        while left.takes("todo", "shop"):
            left, started = left.take("todo", "shop"), started + 1
        assert started == max(0, cap - running)


def test_a_cap_by_state_counts_the_current_tracker_state_without_case() -> None:
    """SM5."""
    dispatch = DispatchSection(max_running_by_state={"Todo": 2, "TODO ": 3, "review": 0})
    assert not room(_running("todo", count=2), dispatch, {}).takes("toDo", "shop")
    moved_on = room([*_running("todo"), *_running("in progress", count=9)], dispatch, {})
    assert moved_on.takes("todo", "shop")
    assert not moved_on.take("TODO", "shop").takes("todo", "shop")
    assert moved_on.takes("anything", "shop")
    assert not moved_on.takes("Review", "shop")


def test_a_cap_by_repository_holds_for_that_repository_only() -> None:
    """SM5."""
    left = room(_running(count=2), DispatchSection(), _repositories(shop=3, docs=None))
    assert left.takes("todo", "shop")
    full = left.take("todo", "shop")
    assert not full.takes("todo", "shop")
    assert full.takes("todo", "docs")
    assert full.takes("todo", "unheard of")
    with pytest.raises(ValueError, match="no room for a ticket in state 'todo' of 'shop'"):
        full.take("todo", "shop")
    assert left.takes("todo", "shop"), "the room before is a value of its own"


def test_no_cap_is_ever_exceeded() -> None:
    """SM5, on random fleets."""
    chance = random.Random(6)
    states, names = ["todo", "Todo", "agent queue", "qa"], ["shop", "docs", "api"]
    for _ in range(300):
        dispatch = DispatchSection(
            max_running=chance.randint(1, 12),
            max_running_by_state={state: chance.randint(0, 4) for state in chance.sample(states[1:], 2)},
        )
        repositories = _repositories(**{name: chance.choice([None, 1, 2, 3]) for name in names})
        before = [each for _ in range(chance.randint(0, 8)) for each in _running(chance.choice(states), chance.choice(names))]  # fmt: skip
        left, started = room(before, dispatch, repositories), []
        for _ in range(30):
            state, name = chance.choice(states), chance.choice(names)
            if left.takes(state, name):
                left = left.take(state, name)
                started += _running(state, name)
        _caps_hold(before, started, dispatch, repositories)


def _caps_hold(
    before: list[RunningTicket],
    started: list[RunningTicket],
    dispatch: DispatchSection,
    repositories: Mapping[str, RepositorySection],
) -> None:
    """Neither over a cap by what started, nor under it without need."""
    everything = before + started
    by_state = Counter(each.state.casefold() for each in everything)
    by_name = Counter(each.repository for each in everything)
    caps_by_state = {state.casefold(): cap for state, cap in dispatch.max_running_by_state.items()}
    assert len(everything) <= max(dispatch.max_running, len(before))
    for each in started:
        assert by_state[each.state.casefold()] <= caps_by_state.get(each.state.casefold(), 99)
        assert by_name[each.repository] <= (repositories[each.repository].max_running or 99)
    capped = len(caps_by_state) + sum(section.max_running is not None for section in repositories.values())
    assert capped or len(everything) >= dispatch.max_running


def _all_cycles(blocked_by: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """By trying every sequence of tickets."""
    tries = (
        path for size in range(1, len(blocked_by) + 1) for path in itertools.permutations(sorted(blocked_by), size)
    )
    return sorted(
        path
        for path in tries
        if path[0] == min(path) and all(b in blocked_by[a] for a, b in zip(path, path[1:] + path[:1], strict=True))
    )


@pytest.mark.parametrize(
    ("blocked_by", "expected"),
    [
        ({}, []),
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["gone"]}, []),
        ({"a": ["a"]}, [("a",)]),
        ({"c": ["a"], "a": ["b"], "b": ["c"]}, [("a", "b", "c")]),
        ({"b": ["a", "a"], "a": ["b", "b"]}, [("a", "b")]),
        ({"a": ["b"], "b": ["a", "c"], "c": ["b"], "d": ["a"]}, [("a", "b"), ("b", "c")]),
    ],
)
def test_each_cycle_is_reported_once_from_its_smallest_key(
    blocked_by: dict[str, list[str]], expected: list[tuple[str, ...]]
) -> None:
    """SM12."""
    assert cycles(blocked_by) == expected


def test_cycles_are_all_that_trying_everything_finds() -> None:
    """SM12, on random boards of up to six tickets."""
    chance = random.Random(12)
    for _ in range(400):
        keys = "abcdef"[: chance.randint(1, 6)]
        density = chance.choice([0.1, 0.3, 0.5])
        blocked_by = {a: [b for b in keys if chance.random() < density] for a in chance.sample(keys, len(keys))}
        expected = _all_cycles(blocked_by)
        assert cycles(blocked_by) == expected or (
            len(expected) > MOST_CYCLES and set(cycles(blocked_by)) <= set(expected)
        )


def test_long_chains_and_crowds_end_soon() -> None:
    """SM12: no recursion, and no counting of what is uncountable."""
    chain = {str(n): [str(n + 1)] for n in range(10_000)}
    crowd = {str(n): [str(m) for m in range(60)] for n in range(60)}
    begun = time.perf_counter()
    assert cycles(chain) == []
    (ring,) = cycles({**chain, "10000": ["0"]})
    found = cycles(crowd)
    pairs = cycles({str(n): [str(n ^ 1)] for n in range(2_000)})
    assert time.perf_counter() - begun < 10
    assert ring == tuple(map(str, range(10_001)))
    assert len(found) == len(set(found)) == MOST_CYCLES == len(pairs)
    assert all(len(set(cycle)) == len(cycle) and cycle[0] == min(cycle) for cycle in found)


def test_a_real_boards_edges_have_no_cycle_until_one_is_closed() -> None:
    """SM12 on the board of an agent factory."""
    lines = _shared("gastown-board", "dependencies.jsonl").read_text(encoding="utf-8").splitlines()
    blocked_by: dict[str, list[str]] = {}
    for edge in map(json.loads, lines):
        if edge["type"] == "blocks":
            blocked_by.setdefault(edge["issue_id"], []).append(edge["depends_on_id"])
    assert sum(map(len, blocked_by.values())) == 57
    assert cycles(blocked_by) == []
    ticket, (blocker, *_) = next(iter(blocked_by.items()))
    closed = {**blocked_by, blocker: [*blocked_by.get(blocker, []), ticket]}
    assert tuple(sorted((ticket, blocker))) in cycles(closed)


def test_no_ticket_of_a_real_board_is_taken_for_junk() -> None:
    """SM3 on the board of an agent factory; all titles of this half of it say something, if only a name."""
    rows = _rows("gastown-board", "issues.jsonl.gz")
    refused = [row["title"] for row in rows if refusal(_ticket(row["id"], title=row["title"]), OPEN)]
    assert len(rows) == 329
    assert refused == []


def _keys(tickets: list[Ticket], limit: int = 4, repository: str = "shop", **options: Any) -> list[str]:
    found = batches([(ticket, repository) for ticket in tickets], limit, **options)
    return ["".join(ticket.key for ticket in session) for session in found]


def test_related_small_tickets_that_follow_one_another_share_a_session() -> None:
    """T13."""
    cart = [_ticket(key, title=f"{key} {key}", labels=("cart", "bug")) for key in "abcdefghi"]
    assert _keys(cart) == ["abcd", "efgh", "i"]
    assert _keys(cart, limit=2) == ["ab", "cd", "ef", "gh", "i"]
    assert _keys(cart, limit=1) == list("abcdefghi")
    assert _keys([]) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"body": "x" * 2_000},
        {"priority": 1},
        {"comments": (Comment(author="ann", at=None, body="hm"),)},
        {"board": "other"},
        {"title": "Other words", "labels": ("search",)},
    ],
)
def test_a_ticket_that_is_large_urgent_discussed_or_about_something_else_is_alone(fields: dict[str, Any]) -> None:
    """T13."""
    first, second, third = (_ticket(key, labels=("cart",)) for key in "abc")
    assert _keys([first, second, third]) == ["abc"]
    assert _keys([first, second.model_copy(update=fields), third]) == ["a", "b", "c"]


def test_tickets_of_two_repositories_never_share_a_session() -> None:
    """T13: of one repository."""
    tickets = [_ticket(key, labels=("cart",)) for key in "abc"]
    found = batches(list(zip(tickets, ["shop", "docs", "docs"], strict=True)), 4)
    assert [[ticket.key for ticket in session] for session in found] == [["a"], ["b", "c"]]


@pytest.mark.parametrize("label", ["bug", "Todo", "shop", "repo:shop", "agent"])
def test_a_label_that_every_ticket_may_have_relates_nothing(label: str) -> None:
    tickets = [_ticket("a", title="Mend search", labels=(label,)), _ticket("b", title="Print prices", labels=(label,))]
    assert _keys(tickets, ignored_labels=("Agent",)) == ["a", "b"]


def test_every_two_tickets_of_a_session_are_related() -> None:
    labels = {"a": ("x",), "b": ("x", "y"), "c": ("y",)}
    tickets = [_ticket(key, title=key * 3, labels=each) for key, each in labels.items()]
    assert _keys(tickets) == ["ab", "c"]


def test_titles_without_words_are_about_nothing_in_common() -> None:
    assert not alike("1", "2")
    assert not alike("#12", "")


def test_batches_keep_order_and_lose_nothing() -> None:
    """T13, on random queues."""
    chance = random.Random(13)
    for _ in range(300):
        queue = [
            (_ticket(str(n), title=chance.choice(["Mend cart", "Search"]), priority=chance.choice([1, 2, None]), labels=tuple(chance.sample("xyz", 1))), chance.choice(["shop", "docs"]))
            for n in range(chance.randint(0, 15))
        ]  # fmt: skip
        limit = chance.randint(1, 4)
        found = batches(queue, limit)
        assert [ticket for session in found for ticket in session] == [ticket for ticket, _ in queue]
        assert all(1 <= len(session) <= limit for session in found)


def test_similar_titles_are_rare_by_chance_and_common_among_duplicates(capsys: pytest.CaptureFixture[str]) -> None:
    """The threshold of `alike`, on 529 reports of one project and the duplicates that people marked."""
    titles = {str(row["Issue id"]): row["Summary"] for row in _rows("gitbugs-hadoop", "reports.jsonl.gz")}
    with _shared("gitbugs-hadoop", "duplicate_pairs.csv").open(encoding="utf-8") as lines:
        duplicates = [(titles[row["a"]], titles[row["b"]]) for row in csv.DictReader(lines)]
    chance, everything = random.Random(1), list(titles.values())
    strangers = [chance.sample(everything, 2) for _ in range(20_000)]
    of_duplicates = sum(alike(one, other) for one, other in duplicates) / len(duplicates)
    of_strangers = sum(alike(one, other) for one, other in strangers) / len(strangers)
    with capsys.disabled():
        print(f"\nalike: {of_duplicates:.0%} of duplicates, {of_strangers:.2%} of random pairs")
    assert of_duplicates > 0.33
    assert of_strangers < 0.003
