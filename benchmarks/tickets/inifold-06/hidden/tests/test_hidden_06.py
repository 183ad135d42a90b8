from inifold.pattern import first_match, matches, select


def test_a_dot_is_a_dot():
    assert select(["happy", "a.py", "b.pyc"], include=["*.py"]) == ["a.py"]
    assert not matches("axtxt", "a.txt")


def test_other_signs():
    assert matches("a+b.txt", "a+b.txt")
    assert matches("x (1).txt", "x (1).txt")
    assert matches("[draft]/$a^", "[draft]/$a^")
    assert not matches("d", "[draft]")


def test_wildcards_still_work():
    assert matches("a/b/c.d", "**/?.d")
    assert first_match("a.b", {"a.*": 1, "**": 2}) == 1
