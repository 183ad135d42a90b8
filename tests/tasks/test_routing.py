"""Routing: what is said on purpose binds, words count while they do not contradict one another, nothing is guessed (I3)."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from benchmarks import routing as benchmark
from infra.boards import Ticket
from infra.sections import GitHubForgeSection, RepositorySection
from tasks.routing import Route, route


def _section(**fields: Any) -> RepositorySection:
    return RepositorySection(path=Path("somewhere"), **fields)


SHOP = _section(
    remote="git@github.com:acme/Shop.git",
    aliases=("web shop", "storefront"),
    keywords=("checkout page", "cv::Cart", "shopping cart"),
)
API = _section(
    github=GitHubForgeSection(project="acme/shop-api", token=SecretStr("t"), url="https://forge.example/api/v3"),
    aliases=("core service",),
    keywords=("rate limit", "cart endpoint"),
)
DOCS = _section(remote="https://gitlab.com/acme/writing/docs.git", aliases=("acme/manual",), keywords=("handbook",))
BOTH = {"shop": SHOP, "shop-api": API, "docs": DOCS}


def _ticket(title: str = "Mend it", body: str = "It is broken.", **fields: Any) -> Ticket:
    return Ticket(**{"key": "T-1", "title": title, "body": body, "state": "todo", **fields})


def _routed(*arguments: Any, default: str | None = None, **fields: Any) -> tuple[str | None, str]:
    found = route(_ticket(*arguments, **fields), BOTH, default)
    return found.repository, found.by


def test_the_first_rule_that_applies_decides() -> None:
    """I3: label or field, title prefix, names, keywords; then the board's default."""
    said: dict[str, Any] = {
        "repository": "shop",
        "labels": ("repo:docs",),
        "title": "[shop-api] the web shop loses the cart endpoint",
        "body": "see the handbook",
    }
    assert _routed(**said, default="docs") == ("shop", "field")
    del said["repository"]
    assert _routed(**said, default="shop") == ("docs", "label")
    del said["labels"]
    assert _routed(**said, default="docs") == ("shop-api", "title")
    assert _routed("the web shop breaks", "in the shopping cart", default="docs") == ("shop", "name")
    assert _routed("mend it", "in the shopping cart", default="docs") == ("shop", "keyword")
    assert _routed(default="docs") == ("docs", "board")


@pytest.mark.parametrize("said", ["shop", "SHOP", " Web  Shop ", "acme/shop", "https://github.com/acme/shop", "git@github.com:acme/shop.git"])  # fmt: skip
def test_a_field_may_hold_any_name_of_the_repository(said: str) -> None:
    assert _routed(repository=said) == ("shop", "field")


@pytest.mark.parametrize("label", ["repo:shop", "repository/shop", "repo=Web Shop", "repo: acme/shop", "shop", "storefront"])  # fmt: skip
def test_a_label_names_the_repository(label: str) -> None:
    assert _routed(labels=("bug", label)) == ("shop", "label")


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ({"repository": "nope"}, "the field `repository` names 'nope'"),
        ({"repository": "acme/nope"}, "names 'acme/nope'"),
        ({"repository": "https://github.com/acme/shop-web"}, "names 'https://github.com/acme/shop-web'"),
        ({"labels": ("repo:nope",)}, "the label names 'nope'"),
        ({"labels": ("repo:", "shop")}, "the label names ''"),
        ({"title": "[nope] the web shop breaks"}, "the title's prefix names 'nope'"),
        ({"title": "[Bug][acme/nope] the web shop breaks"}, "the title's prefix names 'acme/nope'"),
    ],
)
def test_an_unknown_explicit_name_is_never_replaced_by_a_guess(said: dict[str, Any], where: str) -> None:
    """I3: unknown is skipped, never guessed."""
    found = route(_ticket(**{"body": "the web shop, shopping cart", **said}), BOTH, "shop")
    assert (found.repository, found.by) == (None, "")
    assert where in found.reason
    assert "Known: 'docs', 'shop', 'shop-api'" in found.reason
    assert "To route it, correct " in found.reason


def test_one_configured_repository_does_not_take_a_ticket_for_another() -> None:
    assert route(_ticket(repository="nope"), {"shop": SHOP}, None).repository is None
    assert route(_ticket("[nope] mend it"), {"shop": SHOP}, None).repository is None


@pytest.mark.parametrize("title", ["[Bug] mend it", "[Feature request] mend it", "[ ] mend it", "[x", "[1.2] mend it", "a [nope] b"])  # fmt: skip
def test_brackets_that_name_no_repository_say_nothing(title: str) -> None:
    assert _routed(title, default="docs") == ("docs", "board")


def test_a_kind_before_or_after_the_prefix_does_not_hide_it() -> None:
    assert _routed("[BUG] [Web Shop][WIP] mend it") == ("shop", "title")


@pytest.mark.parametrize(
    "said",
    [
        {"labels": ("repo:shop", "repo:docs")},
        {"labels": ("repo:shop", "docs")},
        {"title": "[shop][docs] mend it"},
        {"title": "shop and docs disagree"},
        {"title": "mend the docs", "body": "they are wrong on acme/shop"},
        {"title": "mend it", "body": "shopping cart, rate limit"},
        {"title": "the shop breaks", "body": "at a rate limit"},
        {"title": "shop breaks", "body": "." * 5_000 + " as docs say"},
    ],
)
def test_two_repositories_at_one_level_are_never_guessed(said: dict[str, Any]) -> None:
    """I3: also not by the board's default."""
    found = route(_ticket(**said), BOTH, "shop")
    assert found.repository is None
    assert "'shop'" in found.reason


def test_an_alias_of_two_repositories_names_neither() -> None:
    twins = {"one": _section(aliases=("app",)), "two": _section(aliases=("App",))}
    for ticket in (_ticket(repository="app"), _ticket(labels=("app",)), _ticket("[app] x"), _ticket("the app breaks")):
        assert route(ticket, twins, None).repository is None
    assert route(_ticket(repository="one"), twins, None).repository == "one"
    assert route(_ticket(repository="App"), {"App": SHOP, "app": DOCS}, None).repository == "App"


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("the shop breaks", "shop"),
        ("Shop's prices", "shop"),
        ("(shop)", "shop"),
        ("is it the shop?", "shop"),
        ("the WEB\n shop", "shop"),
        ("the shop-api breaks", "shop-api"),
        ("shopping", None),
        ("workshop", None),
        ("my_shop", None),
        ("shop_api", None),
        ("pet-shop", None),
        ("shop.example", None),
        ("std::shop", None),
        ("shop@example.com", None),
        ("@shop look", None),
        ("src/shop/x.py", None),
        (r"C:\shop\x.py", None),
        (r"C:\core service", None),
        ("https://example.com/shop", None),
        ("https://example.com/?q=shop", None),
    ],
)
def test_names_count_as_words_but_not_inside_identifiers_paths_or_addresses(text: str, repository: str | None) -> None:
    assert route(_ticket(text), BOTH, None).repository == repository


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("acme/shop", "shop"),
        ("acme/shop#12", "shop"),
        ("see https://github.com/acme/shop/issues/3.", "shop"),
        ("[here](http://www.github.com/Acme/Shop)", "shop"),
        ("git clone git@github.com:acme/shop.git", "shop"),
        ("ssh://git@github.com:22/acme/shop.git", "shop"),
        ("https://forge.example/acme/shop-api/pull/1", "shop-api"),
        ("https://gitlab.com/acme/writing/docs/-/issues/1", "docs"),
        ("https://gitlab.com/acme/writing/other", None),
        ("https://github.com/acme/shop-api", None),
        ("https://github.com/somebody/shop", None),
        ("https://elsewhere.example/acme/shop", None),
        ("acme/shop/", "shop"),
        ("acme/shop/src/x.py", None),
        ("https://github.com/acme/manual/issues/1", "docs"),
        ("https://forge.example/acme/manual", "docs"),
        ("vendor/acme/shop", None),
        ("/srv/acme/shop", None),
    ],
)
def test_an_address_counts_for_the_repository_that_lives_there_only(text: str, repository: str | None) -> None:
    far_down = "." * 500 + " " + text
    assert route(_ticket(body=far_down), BOTH, None).repository == repository


def test_a_repository_on_github_lives_where_people_read_it() -> None:
    forge = GitHubForgeSection(project="Acme/Shop", token=SecretStr("t"))
    ticket = _ticket(body="." * 500 + " https://github.com/acme/shop/pull/1")
    assert route(ticket, {"web": _section(github=forge), "docs": DOCS}, None).repository == "web"


@pytest.mark.parametrize("unseen", ["\u200b", "\u00ad", "\ufeff", "\u202e", "\x00", "\U000e0041"])
def test_characters_that_nobody_sees_change_nothing(unseen: str) -> None:
    """I3: a prefix that reads `[shop]` is never taken for prose, and its ticket never for one of the board's default."""
    for said in ({"title": f"[sh{unseen}op] mend it"}, {"title": f"{unseen}[shop] mend it"}, {"labels": (f"repo:{unseen}shop",)},
                 {"repository": f"{unseen}shop"}, {"body": f"the sh{unseen}op is broken"}):  # fmt: skip
        assert route(_ticket(**said), BOTH, "docs").repository == "shop", said
    assert route(_ticket(body=f"the shop, and the do{unseen}cs"), BOTH, None).repository is None


def test_comments_that_a_template_leaves_in_a_text_route_nothing_but_cast_doubt() -> None:
    """I3: the author neither wrote them nor sees them. One real issue goes wrong when they are not read at all."""
    template = "<!-- Questions? Ask in https://gitlab.com/acme/writing/docs -->\nThe cart is empty.\n<!-- handbook handbook -->"
    assert route(_ticket(body=template), BOTH, None).repository is None
    assert route(_ticket(body=template), BOTH, "shop").repository == "shop"
    assert route(_ticket(body=f"{template} It is in the shop."), BOTH, None).repository is None
    assert route(_ticket(body="<!-- what in the shop --> the shop <!-- never closed"), BOTH, None).repository == "shop"
    assert route(_ticket(body="a --> b, in the shop"), BOTH, None).repository == "shop"


def test_a_name_inside_the_name_or_keyword_of_another_is_not_a_mention() -> None:
    nested = {"code": _section(aliases=("api core",)), "editor": _section(aliases=("vs code", "code api"), keywords=("code review",))}  # fmt: skip
    assert route(_ticket("VS Code breaks"), nested, None).repository == "editor"
    assert route(_ticket("in code review"), nested, None).repository == "editor"
    assert route(_ticket("the code api core"), nested, None).repository == "editor"
    assert route(_ticket("the code breaks"), nested, None).repository == "code"


def test_keywords_are_whole_words_and_may_stand_in_identifiers_and_paths() -> None:
    assert _routed("new cv::Cart(1)") == ("shop", "keyword")
    assert _routed("cv::Carts") == (None, "")
    assert _routed("in src/handbook/index") == ("docs", "keyword")
    blank = {"shop": _section(keywords=("", " ", "--"), aliases=("",)), "docs": DOCS}
    assert route(_ticket("a -- b"), blank, None).repository is None


def test_a_single_mention_far_down_routes_nothing_but_casts_doubt() -> None:
    """A ticket of an editor may say what its user's app is built with."""
    far_down = "word " * 100
    assert _routed(body=f"{far_down} the shop") == (None, "")
    assert _routed(body=f"{far_down} the shop", default="docs") == ("docs", "board")
    assert _routed(body=f"{far_down} the shop, the shop") == ("shop", "name")
    assert _routed(body=f"the shop {far_down}") == ("shop", "name")
    assert _routed("mend the docs", f"{far_down} the shop") == (None, "")


def test_the_only_repository_is_taken_when_the_board_names_none() -> None:
    assert route(_ticket(), {"shop": SHOP}, None) == Route(repository="shop", by="only")
    assert route(_ticket(), BOTH, None).repository is None
    assert route(_ticket(), {}, None).reason.count("Known: none") == 1
    wrong_default = route(_ticket(), {"shop": SHOP}, "shop2")
    assert wrong_default.repository is None
    assert "'shop2'" in wrong_default.reason
    assert "factory.yaml" in wrong_default.reason


def test_a_reason_is_one_short_line() -> None:
    many = {f"repository-{number}": _section() for number in range(500)}
    for said in ("x\n<!-- df:claim 0 -->" * 10_000, "[a]" * 10_000):
        found = route(_ticket(said, labels=(f"repo:{said}",)), many, None)
        assert found.repository is None
        assert "\n" not in found.reason
        assert len(found.reason) < 600
        assert "and 490 more" in found.reason


HOSTILE = ["a", "<!--", "<!---->", "\u200b", "a/", "shop ", "shop,", "shop-api/", "[ ", "[a]", " ", "\\", "github.com/acme/shop ", "https://github.com/", "@:/", "::", "\u01c4", "web "]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_megabyte_of_anything_is_routed_in_bounded_time(piece: str) -> None:
    fleet = {f"shop-{number}": _section(remote=f"git@github.com:acme/shop-{number}.git", keywords=(f"shop {number}",)) for number in range(50)}  # fmt: skip
    text = piece * (1_000_000 // len(piece))
    begun = time.process_time()
    for ticket in (_ticket(body=text), _ticket(text), _ticket(labels=(text,)), _ticket(repository=text)):
        route(ticket, fleet, None)
    assert time.process_time() - begun < 10


def test_the_order_of_repositories_and_labels_changes_nothing() -> None:
    chance = random.Random(7)
    words = [
        "shop",
        "docs",
        "web shop",
        "rate limit",
        "handbook",
        "acme/shop",
        "[docs]",
        "[bug]",
        "x",
        "repo:shop",
        "the",
    ]
    for _ in range(300):
        ticket = _ticket(
            " ".join(chance.choices(words, k=3)),
            " ".join(chance.choices(words, k=3)),
            labels=tuple(chance.choices(words, k=2)),
        )
        found = {
            (route(one, dict(each), None).repository, route(one, dict(each), None).by)
            for each in itertools.permutations(BOTH.items())
            for one in (ticket, ticket.model_copy(update={"labels": ticket.labels[::-1]}))
        }
        assert len(found) == 1


def test_no_real_issue_goes_to_the_wrong_repository(capsys: pytest.CaptureFixture[str]) -> None:
    """I3 on 300 real issues of five repositories; see `python -m benchmarks.routing`."""
    if not benchmark.ISSUES.exists():
        pytest.skip("the issues are not part of this repository; they lie in the folder `shared` beside it")
    assert benchmark.main([]) == 0
    routed = benchmark.measure(benchmark.ISSUES)
    assert [each for each in routed if each.ending == "wrong"] == []
    assert sum(each.ending == "right" for each in routed) >= 230
    with capsys.disabled():
        print("\n" + capsys.readouterr().out)
