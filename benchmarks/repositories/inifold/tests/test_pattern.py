from inifold.pattern import first_match, matches, select


def test_star_stays_in_one_folder():
    assert matches("logs/a.txt", "logs/*.txt")
    assert not matches("logs/x/a.txt", "logs/*.txt")


def test_question_mark():
    assert matches("a1", "a?")
    assert not matches("a12", "a?")


def test_double_star():
    assert matches("logs/x/y/a.txt", "logs/**/*.txt")
    assert matches("logs/x/y", "logs/**")


def test_select():
    paths = ["a.py", "b.txt", "test_a.py"]
    assert select(paths, include=["*.py"], exclude=["test_*"]) == ["a.py"]


def test_first_match():
    rules = {"**": "any", "docs/**": "docs", "docs/api/*.md": "api"}
    assert first_match("docs/api/x.md", rules) == "api"
    assert first_match("docs/x.md", rules) == "docs"
    assert first_match("src/x.py", rules) == "any"
