"""Small edits: each kind of typical slip is turned back, and nothing is proposed that no interpreter reads."""

from __future__ import annotations

import time

import pytest

from infra.mutants import Mutant, mutants
from infra.syntax import functions, parses

LIMIT = 600


def edits(path: str, source: str, limit: int = LIMIT, lines: frozenset[int] | None = None) -> list[Mutant]:
    return mutants(path, source, functions(path, source), limit, lines)


def body(text: str) -> str:
    return f"def f(xs, n=3):\n    {text}\n"


@pytest.mark.parametrize(
    ("slip", "fix"),
    [
        ("return len(xs) < n", "return len(xs) <= n"),
        ("return n in xs", "return n not in xs"),
        ("return not xs", "return xs"),
        ("return xs[0] and n", "return xs[0] or n"),
        ("return n / 2", "return n // 2"),
        ("return xs[1]", "return xs[0]"),
        ("return range(n)", "return range(n + 1)"),
        ("return n * 3", "return n * 2"),
        ("return min(xs)", "return max(xs)"),
        ("return xs.lstrip()", "return xs.strip()"),
        ("return xs[n]", "return xs[xs]"),
        ("return pow(n, xs)", "return pow(xs, n)"),
        ("return sorted(xs)", "return sorted(xs, reverse=True)"),
        ("return xs.get(1, n)", "return xs.get(1)"),
        ("return xs.split(',')", "return xs.split(',', 1)"),
        ("n = xs[0]\n    return n", "n = max(n, xs[0])\n    return n"),
        ("return xs", "return list(xs)"),
        ("if xs:\n        return 1\n    return 0", "if not xs:\n        return 1\n    return 0"),
        ("n += 1\n    return n", "n -= 1\n    return n"),
        ("n = 0\n    return n", "return n"),
        ("return sum(xs) / len(xs)", "if not xs:\n        return None\n    return sum(xs) / len(xs)"),
        ("for x in xs:\n        n += x\n        return n", "for x in xs:\n        n += x\n    return n"),
        ("print(n)\n    n += 1", "n += 1\n    print(n)"),
        ("while n:\n        break", "while n:\n        continue"),
    ],
)  # fmt: skip
def test_a_typical_python_slip_is_turned_back(slip: str, fix: str) -> None:
    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.strip()]

    assert lines(body(fix)) in [lines(m.text) for m in edits("a.py", body(slip))]


@pytest.mark.parametrize(
    ("slip", "fix"),
    [
        ("return a.length < b;", "return a.length <= b;"),
        ("return a === b;", "return a !== b;"),
        ("return a || b;", "return a ?? b;"),
        ("return a && b;", "return a || b;"),
        ("return !a;", "return a;"),
        ("return a[1];", "return a[0];"),
        ("return a.indexOf(b);", "return a.lastIndexOf(b);"),
        ("return a.push(b);", "return a.unshift(b);"),
        ("return Math.floor(a);", "return Math.ceil(a);"),
        ("return a.slice(b);", "return a.slice(b - 1);"),
        ("return f2(a, b);", "return f2(b, a);"),
        ("return a.some(b);", "return a.every(b);"),
        ("a = b; return a;", "a = Math.max(a, b); return a;"),
        ("return a;", "return [...a];"),
        ("if (a) { return b; }", "if (!(a)) { return b; }"),
        ("return true;", "return false;"),
    ],
)
@pytest.mark.parametrize("head", ["export function f(a, b)", "export const f = (a, b) =>"])
def test_a_typical_javascript_slip_is_turned_back(head: str, slip: str, fix: str) -> None:
    found = [" ".join(m.text.split()) for m in edits("a.mjs", f"{head} {{ {slip} }}\n")]
    assert f"{head} {{ {fix} }}" in found


VARIED = '''\
class A:
    async def f(self, xs, *rest, key=None, **more):
        """Doc: a < b."""
        a, b = xs[0], xs[-1]
        c = d = 2
        total: int = 0
        for i, x in enumerate(xs):
            if not x or x == 1 and i != 3:
                continue
            elif x in rest:
                break
            else:
                total += x * 2 if key else -x
        with open("f") as file:
            data = {k: v for k, v in sorted(more.items(), key=lambda p: p[1])}
        try:
            y = sum(x for x in xs)
        except (ValueError, KeyError) as error:
            raise TypeError(f"bad {error}") from None
        return self.g(a, b, *rest, key=key, **data), total, c, d, y, file
'''


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_nearly_every_python_edit_is_valid_for_the_interpreter() -> None:
    """The grammar is more lenient than CPython; what only CPython refuses costs a test run for nothing."""
    found = edits("a.py", VARIED, limit=2_000)
    refused = []
    for mutant in found:
        try:
            compile(mutant.text, "a.py", "exec")
        except SyntaxError as error:
            refused.append(f"{mutant.what}: {error}")
    assert len(found) > 200
    assert len(refused) <= len(found) // 50, refused


def test_no_edit_is_offered_that_does_not_parse_or_changes_nothing() -> None:
    js = "class A {\n  f(a, { b = 1, ...c }) {\n    for (const x of a) if (x > b) c[x] = `${x + 1}`;\n    return a?.b ?? (() => c);\n  }\n}\n"
    go = "package p\n\nfunc F(a []int, b int) (int, error) {\n\tfor i, x := range a {\n\t\tif x < b && i > 0 {\n\t\t\treturn x, nil\n\t\t}\n\t}\n\treturn len(a), nil\n}\n"
    for path, source in (("a.py", VARIED), ("a.js", js), ("a.go", go)):
        found = edits(path, source, limit=2_000)
        assert found
        assert all(parses(path, m.text) and m.text != source for m in found)
        assert len({m.text for m in found}) == len(found)


def test_edits_are_the_same_every_time_ordered_by_cost_and_bounded() -> None:
    first = edits("a.py", VARIED)
    assert first == edits("a.py", VARIED)
    assert [m.cost for m in first] == sorted(m.cost for m in first)
    assert edits("a.py", VARIED, limit=7) == first[:7]


def test_the_likelier_function_comes_first_at_equal_cost() -> None:
    source = "def a(x):\n    return x < 1\n\n\ndef b(x):\n    return x < 1\n"
    a, b = functions("m.py", source)
    assert mutants("m.py", source, [b, a], 1)[0].function == "b"
    assert mutants("m.py", source, [a, b], 1)[0].function == "a"


def test_only_lines_that_ran_are_edited() -> None:
    source = "def f(x):\n    if x:\n        return x < 1\n    return x < 2\n"
    found = edits("m.py", source, lines=frozenset({1, 2, 4}))
    assert found
    assert not any("x <= 1" in m.text for m in found)
    assert any("x <= 2" in m.text for m in found)
    assert not edits("m.py", source, lines=frozenset({1})), "only its `def` ran, on import"


def test_a_function_on_one_line_is_edited() -> None:
    assert any("x <= 1" in m.text for m in edits("m.py", "def f(x): return x < 1\n", lines=frozenset({1})))


def test_strings_comments_and_other_functions_stay() -> None:
    source = 'def f(x):\n    # a < b\n    return "a < b" + x\n\n\ndef g(x):\n    return x < 1\n'
    found = mutants("m.py", source, functions("m.py", source)[:1], LIMIT)
    assert found
    assert all("# a < b" in m.text and '"a <= b"' not in m.text and "return x < 1" in m.text for m in found)


def test_a_file_indented_by_tabs_gets_guards_it_can_be_read_with() -> None:
    found = edits("m.py", "class A:\n\tdef f(self, xs):\n\t\treturn sum(xs) / len(xs)\n")
    guards = [m for m in found if m.what.startswith("return")]
    assert guards
    for mutant in guards:
        compile(mutant.text, "m.py", "exec")


def test_unicode_before_an_edit_does_not_shift_it() -> None:
    assert any(m.text == 'É = "日本"\ndef f(x):\n    return x <= 1\n' for m in edits("m.py", 'É = "日本"\ndef f(x):\n    return x < 1\n'))  # fmt: skip


def test_a_huge_function_is_bounded_in_time() -> None:
    source = "def f(a, b):\n" + "".join(f"    a{i} = a + b * {i} - max(a, b)\n" for i in range(800))
    started = time.monotonic()
    assert len(edits("m.py", source, limit=50)) == 50
    assert time.monotonic() - started < 15


def test_a_format_of_an_f_string_is_turned_back() -> None:
    source = 'def clock(minutes):\n    return f"{minutes // 60}:{minutes % 60}"\n'
    fixed = source.replace("{minutes % 60}", "{minutes % 60:02d}")
    assert fixed in {m.text for m in mutants("clock.py", source, functions("clock.py", source), 10_000)}


def test_code_inside_an_f_string_is_edited_and_its_text_is_not() -> None:
    source = 'def share(part, whole):\n    return f"1 + 1 is {part / whole}"\n'
    texts = [m.text for m in mutants("share.py", source, functions("share.py", source), 10_000)]
    assert any("{part * whole}" in text for text in texts)
    assert all("1 + 1 is" in text for text in texts)
