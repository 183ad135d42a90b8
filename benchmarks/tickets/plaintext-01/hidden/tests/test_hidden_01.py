from plaintext.naming import title


def test_the_last_word_is_capitalised():
    assert title("nothing to believe in") == "Nothing to Believe In"
    assert title("come on") == "Come On"


def test_small_words_inside_stay_small():
    assert title("a tale of the two of us") == "A Tale of the Two of Us"


def test_short_texts():
    assert title("the") == "The"
    assert title("") == ""
