from plaintext.naming import camel, initials, kebab, ordinal, pluralize, sentence_list, snake, title, words


def test_words():
    assert words("some_name here") == ["some", "name", "here"]
    assert words("someName") == ["some", "Name"]


def test_styles():
    assert snake("someName") == "some_name"
    assert kebab("Some Name") == "some-name"
    assert camel("some-name") == "someName"
    assert camel("some name", upper_first=True) == "SomeName"


def test_title():
    assert title("lord of the rings") == "Lord of the Rings"
    assert title("the end") == "The End"
    assert title("what are you waiting for") == "What Are You Waiting For"


def test_pluralize():
    assert pluralize("box") == "boxes"
    assert pluralize("city") == "cities"
    assert pluralize("sheep") == "sheep"
    assert pluralize("cat", 1) == "cat"


def test_sentence_list():
    assert sentence_list(["a", "b"]) == "a and b"
    assert sentence_list(["a", "b", "c"]) == "a, b, and c"
    assert sentence_list([]) == ""


def test_initials():
    assert initials("ada king lovelace") == "AKL"


def test_ordinal():
    assert [ordinal(n) for n in (1, 2, 3, 4, 21)] == ["1st", "2nd", "3rd", "4th", "21st"]
