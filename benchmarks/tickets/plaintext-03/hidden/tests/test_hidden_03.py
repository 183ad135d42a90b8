from plaintext.slugs import unique_slug


def test_counts_on_with_any_separator():
    taken = set()
    for _ in range(4):
        taken.add(unique_slug("Summer Party", taken, separator="_"))
    assert taken == {"summer_party", "summer_party_2", "summer_party_3", "summer_party_4"}


def test_hyphens():
    assert unique_slug("News", {"news", "news-2", "news-3"}) == "news-4"


def test_other_slugs_do_not_matter():
    assert unique_slug("News", {"news", "news-2"}, separator="_") == "news_2"
