import pytest

from plaintext.template import TemplateError, render


def test_names_and_paths():
    assert render("Hi {{ user.name }}!", {"user": {"name": "Ada"}}) == "Hi Ada!"
    assert render("{{ items.0 }}", {"items": ["x"]}) == "x"


def test_none_is_empty():
    assert render("[{{ x }}]", {"x": None}) == "[]"


def test_filters():
    assert render("{{ x | trim | upper }}", {"x": " a "}) == "A"


def test_unknown_name():
    with pytest.raises(TemplateError):
        render("{{ nobody }}", {})


def test_if_else():
    template = "{% if ok %}yes{% else %}no{% endif %}"
    assert render(template, {"ok": True}) == "yes"
    assert render(template, {"ok": False}) == "no"


def test_not():
    assert render("{% if not ok %}no{% endif %}", {"ok": 0}) == "no"


def test_for_with_index():
    assert render("{% for x in xs %}{{ index }}{{ x }} {% endfor %}", {"xs": "ab"}) == "1a 2b "


def test_open_block():
    with pytest.raises(TemplateError):
        render("{% if x %}a", {"x": 1})
