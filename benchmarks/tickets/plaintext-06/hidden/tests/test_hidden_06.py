import pytest

from plaintext.template import TemplateError, render


def test_for_in_if():
    template = "{% if xs %}{% for x in xs %}{{ x }},{% endfor %}{% else %}none{% endif %}"
    assert render(template, {"xs": [1, 2]}) == "1,2,"
    assert render(template, {"xs": []}) == "none"


def test_for_in_for():
    template = "{% for row in rows %}{% for x in row %}{{ x }}{% endfor %};{% endfor %}"
    assert render(template, {"rows": [[1, 2], [3]]}) == "12;3;"


def test_if_in_for_in_if():
    template = "{% if a %}{% for x in xs %}{% if x %}y{% else %}n{% endif %}{% endfor %}{% endif %}!"
    assert render(template, {"a": 1, "xs": [1, 0]}) == "yn!"


def test_open_blocks_are_still_found():
    with pytest.raises(TemplateError):
        render("{% if a %}{% for x in xs %}{% endfor %}", {"a": 1, "xs": []})
