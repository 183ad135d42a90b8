from plaintext.template import render


def test_not_holds_for_false_and_missing():
    template = "{% if not user %}login{% else %}logout{% endif %}"
    assert render(template, {"user": None}) == "login"
    assert render(template, {}) == "login"
    assert render(template, {"user": "ada"}) == "logout"


def test_plain_if():
    template = "{% if user %}yes{% else %}no{% endif %}"
    assert [render(template, {"user": value}) for value in ("x", "", [0])] == ["yes", "no", "yes"]
