from plaintext.stats import average_word_length, common_words, longest_words, reading_minutes, similarity, word_count


def test_word_count():
    assert word_count("Don't panic, well-known rule.") == 4


def test_reading_minutes():
    assert reading_minutes("word " * 400) == 2
    assert reading_minutes("") == 0


def test_common_words():
    assert common_words("the cat saw the cat and the dog", 2) == [("cat", 2), ("dog", 1)]


def test_average_word_length():
    assert average_word_length("a bcd") == 2.0


def test_longest_words():
    assert longest_words("one three seven", 2) == ["seven", "three"]


def test_similarity():
    assert similarity("red blue", "blue green") == 1 / 3
    assert similarity("", "") == 1.0
