from plaintext.slugs import ascii_fold, filename, slugify, split_slug, unique_slug


def test_fold():
    assert ascii_fold("Crème Brûlée") == "Creme Brulee"
    assert ascii_fold("straße") == "strasse"


def test_slugify():
    assert slugify("Hello, World!") == "hello-world"
    assert slugify("R&D costs") == "r-and-d-costs"


def test_slugify_separator():
    assert slugify("Hello World", separator="_") == "hello_world"


def test_slugify_is_cut_between_words():
    assert slugify("alpha beta gamma", max_length=12) == "alpha-beta"


def test_unique_slug():
    assert unique_slug("News", set()) == "news"
    assert unique_slug("News", {"news"}) == "news-2"


def test_untitled():
    assert unique_slug("???", set()) == "untitled"


def test_filename():
    assert filename("My Report", "pdf") == "my_report.pdf"
    assert filename("con") == "con_"


def test_split_slug():
    assert split_slug("news-2") == ("news", 2)
    assert split_slug("news") == ("news", 1)
