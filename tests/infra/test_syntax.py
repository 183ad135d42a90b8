"""Functions found and corrected ones spliced in, in the forms small models really answer with."""

from __future__ import annotations

import ast
from textwrap import dedent

import pytest

from infra.syntax import functions, is_source, parses, splice

SHAPES = dedent('''\
    """Shapes."""

    import math


    class Circle:
        def __init__(self, r):
            self.r = r

        # the area
        @property
        def area(self):
            return math.pi * self.r

    class Square:
        def __init__(self, side):
            self.side = side

        def area(self):
            return self.side * 4


    @cache
    async def load(name):
        return await fetch(name)


    def outer(xs):
        def helper(x):
            return x + 1
        return [helper(x) for x in xs]


    def helper(x):
        return x
    ''')


def spliced(path: str, source: str, answer: str) -> str:
    result = splice(path, source, dedent(answer))
    assert result is not None
    if path.endswith(".py"):
        ast.parse(result)
    return result


def test_functions_are_named_by_their_class_or_function() -> None:
    names = [f.qualified_name for f in functions("a.py", SHAPES)]
    assert names == [
        "Circle.__init__", "Circle.area", "Square.__init__", "Square.area", "load", "outer", "outer.helper", "helper"
    ]  # fmt: skip
    assert (functions("a.txt", SHAPES), is_source("a.txt"), parses("a.txt", "((")) == ([], False, True)


def test_every_javascript_form_of_a_function_is_known() -> None:
    source = dedent("""\
        export default function main() {}
        const a = (x) => x;
        exports.b = function (x) { return x; };
        module.exports = { c: (x) => x, d(x) { return x; } };
        class K { e = () => 1; static async f() {} *g() {} }
        """)
    assert {f.qualified_name for f in functions("a.js", source)} == {"main", "a", "b", "c", "d", "K.e", "K.f", "K.g"}


def test_go_methods_belong_to_their_receiver() -> None:
    source = (
        "package p\n\nfunc (c *Circle[T]) Area() int {\n\treturn 1\n}\n\nfunc (Square) Area() int {\n\treturn 2\n}\n"
    )
    assert [f.qualified_name for f in functions("a.go", source)] == ["Circle.Area", "Square.Area"]
    result = spliced("a.go", source, "func (s Square) Area() int {\n\treturn 4\n}\n")
    assert "return 1" in result
    assert "func (s Square) Area() int {\n\treturn 4\n}\n" in result


@pytest.mark.parametrize(
    "answer",
    [
        "def area(self):\n    return self.side * self.side\n",
        "    def area(self):\n        return self.side * self.side\n",
        "def area(self):\n        return self.side * self.side\n",
        "class Square:\n    def area(self):\n        return self.side * self.side\n",
        "class Square:\n  def area(self):\n    return self.side * self.side\n",
    ],
    ids=["column 0", "indented", "first line stripped", "in its class", "two spaces"],
)
def test_a_method_is_replaced_in_its_own_class_whatever_its_indentation(answer: str) -> None:
    result = splice("a.py", SHAPES, answer)
    assert result is not None
    assert ast.dump(ast.parse(result)) == ast.dump(ast.parse(SHAPES.replace("self.side * 4", "self.side * self.side")))


def test_a_decorated_function_keeps_one_decorator() -> None:
    result = spliced("a.py", SHAPES, "@property\ndef area(self):\n    return math.pi * self.r ** 2\n")
    assert result == SHAPES.replace("math.pi * self.r", "math.pi * self.r ** 2")


def test_an_async_function_stays_async() -> None:
    result = spliced("a.py", SHAPES, "async def load(name):\n    return await fetch(name.strip())\n")
    assert result == SHAPES.replace("fetch(name)", "fetch(name.strip())")


def test_a_nested_function_of_the_answer_does_not_replace_its_namesake_elsewhere() -> None:
    answer = "def outer(xs):\n    def helper(x):\n        return x + 2\n    return [helper(x) for x in xs]\n"
    assert spliced("a.py", SHAPES, answer) == SHAPES.replace("x + 1", "x + 2")
    assert spliced("a.py", "def f():\n    return 1\n\n\ndef g():\n    return 2\n", "def f():\n    def g():\n        return 3\n    return g()\n").endswith("\n\n\ndef g():\n    return 2\n")  # fmt: skip


def test_the_whole_file_repeated_changes_only_what_differs() -> None:
    fixed = SHAPES.replace("self.side * 4", "self.side ** 2").replace("x + 1", "x - 1")
    assert splice("a.py", SHAPES, fixed) == fixed


def test_getter_and_setter_of_one_name_are_kept_apart() -> None:
    source = dedent("""\
        class A:
            @property
            def v(self):
                return self._w

            @v.setter
            def v(self, v):
                self._v = v
        """)
    assert splice("a.py", source, source.replace("_w", "_v")) == source.replace("_w", "_v")


def test_the_last_of_two_versions_in_one_block_counts() -> None:
    answer = "def f():\n    return 1\n\n\ndef f():\n    return 2\n"
    assert splice("a.py", "def f():\n    return 0\n", answer) == "def f():\n    return 2\n"


def test_lines_inside_strings_are_never_moved() -> None:
    source = dedent('''\
        class A:
            def text(self):
                return """
        usage:
              run
            stop
        """ + 1
        ''')
    fixed = source.replace("+ 1", "+ 'x'")
    assert splice("a.py", source, fixed) == fixed
    method = fixed.removeprefix("class A:\n")
    assert splice("a.py", source, method) == fixed
    at_column_0 = 'def text(self):\n    return """\nusage:\n      run\n    stop\n""" + \'x\'\n'
    assert splice("a.py", source, at_column_0) == fixed


def test_a_template_string_in_javascript_keeps_its_lines() -> None:
    source = "class A {\n  t() {\n    return `a\n  b\n`;\n  }\n}\n"
    assert splice("a.js", source, "t() {\n  return `x\n  b\n`;\n}") == source.replace("`a", "`x")


def test_windows_line_ends_stay() -> None:
    source = "import os\r\n\r\n\r\ndef f(a):\r\n    return a\r\n\r\n\r\ndef g():\r\n    return 1\r\n"
    result = splice("a.py", source, "def f(a):\n    b = a\n    return b\n")
    assert result == source.replace("    return a\r\n", "    b = a\r\n    return b\r\n")


def test_an_answer_with_windows_line_ends_brings_none() -> None:
    assert splice("a.py", "def f():\n    return 0\n", "def f():\r\n    return 1\r\n") == "def f():\n    return 1\n"


@pytest.mark.parametrize("indent", ["    ", "\t"])
def test_tabs_of_the_file_win(indent: str) -> None:
    source = "class A:\n\tdef f(self, x):\n\t\tif x:\n\t\t\treturn 0\n\t\treturn 1\n"
    answer = f"def f(self, x):\n{indent}if x:\n{indent * 2}return 5\n{indent}return 1\n"
    assert splice("a.py", source, answer) == source.replace("return 0", "return 5")


def test_spaces_of_the_file_win() -> None:
    source = "def f(x):\n    if x:\n        return 0\n    return 1\n"
    assert splice("a.py", source, "def f(x):\n\tif x:\n\t\treturn 5\n\treturn 1\n") == source.replace("0", "5")


def test_unicode_before_the_function_does_not_shift_it() -> None:
    source = 'GRÜSSE = "äöü 🎉 日本"\n\n\ndef f():\n    return "é"\n\n\nENDE = "ß"\n'
    assert splice("a.py", source, 'def f():\n    return "ñ"\n') == source.replace("é", "ñ")


def test_a_file_without_a_last_newline_keeps_lacking_it() -> None:
    assert splice("a.py", "def f():\n    return 0", "def f():\n    return 1\n") == "def f():\n    return 1"


def test_one_line_functions_are_replaced() -> None:
    assert splice("a.py", "def f(x): return x\n", "def f(x): return x + 1") == "def f(x): return x + 1\n"
    source = "class A:\n    def f(self): return 0\n"
    assert splice("a.py", source, "def f(self):\n    return 1\n") == "class A:\n    def f(self):\n        return 1\n"


def test_a_multi_line_signature_keeps_its_shape() -> None:
    source = "class A:\n    def f(\n        self,\n    ):\n        return 0\n"
    assert splice("a.py", source, "def f(\n    self,\n):\n    return 1\n") == source.replace("0", "1")


@pytest.mark.parametrize(
    "answer",
    ["", "   \n", "x = 1\n", "def other():\n    return 1\n", "def f(:\n    return 1\n", "This is prose, sorry."],
)
def test_an_answer_that_defines_nothing_known_or_does_not_parse_is_none(answer: str) -> None:
    assert splice("a.py", "def f():\n    return 0\n", answer) is None


def test_a_new_function_the_answer_calls_comes_along_before_the_changed_one() -> None:
    source = "# why f is so\n@cache\ndef f(x):\n    return x\n"
    answer = "def _deep(x):\n    return x\n\n\ndef _half(x):\n    return _deep(x) / 2\n\n\ndef f(x):\n    return _half(x)\n\n\ndef test_f():\n    assert f(2) == 1\n"
    result = spliced("a.py", source, answer)
    assert [f.name for f in functions("a.py", result)] == ["_deep", "_half", "f"]
    assert "# why f is so\n@cache\ndef f(x):\n    return _half(x)\n" in result


def test_a_new_arrow_function_the_answer_calls_comes_along() -> None:
    answer = "const half = (x) => x / 2;\n\nexport function f(x) {\n  return half(x);\n}\n"
    result = spliced("a.mjs", "// f\nexport function f(x) {\n  return x;\n}\n", answer)
    assert result.startswith("const half = (x) => x / 2;\n")
    assert result.endswith("// f\nexport function f(x) {\n  return half(x);\n}\n")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os\n\n\ndef f():\n    return 0\n", "import os\nimport re\n"),
        ("def f():\n    return 0\n", "import re\n\n\ndef f"),
        ('"""Doc."""\n\n\ndef f():\n    return 0\n', '"""Doc."""\nimport re\n'),
        ("#!/usr/bin/python\n# -*- coding: utf-8 -*-\ndef f():\n    return 0\n", "#!/usr/bin/python\n# -*- coding: utf-8 -*-\nimport re\n"),
        ("from __future__ import annotations\n\n\ndef f():\n    return 0\n", "from __future__ import annotations\nimport re\n"),
        ("import requests\n\n\ndef f():\n    return 0\n", "import requests\nimport re\n"),
    ],
)  # fmt: skip
def test_an_import_of_the_answer_is_added_where_it_may_stand(source: str, expected: str) -> None:
    result = spliced("a.py", source, "import re\n\n\ndef f():\n    return re.escape('.')\n")
    assert result.startswith(expected)
    compile(result, "a.py", "exec")


def test_imports_the_file_has_already_or_that_name_its_own_functions_are_not_added() -> None:
    source = "from typing import Dict, List\nimport numpy as np\n\n\ndef f():\n    return 0\n"
    answer = "from __future__ import annotations\nfrom typing import List\nimport numpy as np\nfrom calc import f\n\n\ndef f():\n    return 1\n"
    assert splice("calc.py", source, answer) == source.replace("0", "1")


def test_imports_in_go_are_added_after_the_package_and_never_twice() -> None:
    source = "package p\n\nfunc F() int {\n\treturn 0\n}\n"
    answer = 'package p\n\nimport (\n\t"fmt"\n\tst "strings"\n)\n\nfunc F() int {\n\treturn 1\n}\n'
    once = spliced("a.go", source, answer)
    assert once.startswith('package p\nimport "fmt"\nimport st "strings"\n')
    assert splice("a.go", once, answer) == once


def test_imports_in_javascript_are_added_once_and_never_of_the_file_itself() -> None:
    source = "import fs, { readFile as r } from 'fs';\n\nexport function f() {\n  return 0;\n}\n"
    answer = "import { f } from './a.mjs';\nimport fs from 'node:fs';\nimport p from 'path';\n\nfunction f() {\n  return 1;\n}\n"
    assert splice("a.mjs", source, answer) == source.replace("0", "1").replace("'fs';", "'fs';\nimport p from 'path';")


@pytest.mark.parametrize(
    ("source", "answer", "expected"),
    [
        ("export const f = (x) => x;\n", "const f = (x) => x + 1;", "export const f = (x) => x + 1;\n"),
        ("export const f = (x) => x;\n", "function f(x) {\n  return x + 1;\n}", "export const f = function f(x) {\n  return x + 1;\n};\n"),
        ("export function f(x) {\n  return x;\n}\n", "const f = (x) => x + 1;", "export const f = (x) => x + 1;\n"),
        ("exports.f = function (x) { return x; };\n", "exports.f = function (x) { return 1; };", "exports.f = function (x) { return 1; };\n"),
        ("export default function f(x) { return x; }\n", "function f(x) { return 1; }", "export default function f(x) { return 1; }\n"),
        ("class A {\n  static f(x) {\n    return x;\n  }\n}\n", "f(x) {\n  return 1;\n}", "class A {\n  static f(x) {\n    return 1;\n  }\n}\n"),
        ("class A {\n  async f(x) {\n    return x;\n  }\n}\n", "async function f(x) {\n  return 1;\n}", "class A {\n  async f(x) {\n    return 1;\n  }\n}\n"),
        ("class A {\n\tf(x) {\n\t\treturn x;\n\t}\n}\n", "class A {\n  f(x) {\n    return 1;\n  }\n}", "class A {\n\tf(x) {\n\t\treturn 1;\n\t}\n}\n"),
    ],
)  # fmt: skip
def test_javascript_answers_take_the_form_the_file_uses(source: str, answer: str, expected: str) -> None:
    assert splice("a.mjs", source, answer) == expected


def test_typescript_signatures_and_types_stay() -> None:
    source = "export const f: F = async <T,>(x: T): Promise<T> => x;\n\nabstract class A {\n  private g(x: number): number {\n    return x;\n  }\n}\n"
    assert splice("a.ts", source, "private g(x: number): number {\n  return x + 1;\n}") == source.replace(
        "return x;", "return x + 1;"
    )
    assert splice("a.ts", source, "const f = async <T,>(x: T): Promise<T> => y;") == source.replace("=> x", "=> y")


def test_an_accessor_of_the_same_name_in_two_classes_follows_its_class() -> None:
    source = "class A {\n  f() {\n    return 1;\n  }\n}\nclass B {\n  f() {\n    return 1;\n  }\n}\n"
    result = spliced("a.js", source, "class B {\n  f() {\n    return 2;\n  }\n}\n")
    assert result == source[: source.index("class B")] + source[source.index("class B") :].replace("1", "2")


def test_hostile_nesting_neither_crashes_nor_hangs() -> None:
    deep = "def f():\n    return " + "(" * 3000 + "1" + ")" * 3000 + "\n"
    assert splice("a.py", "def f():\n    return 0\n", deep) in (deep, None)
