from plaintext.naming import sentence_list


def test_conjunction_for_many_items():
    assert sentence_list(["tea", "coffee", "milk"], "or") == "tea, coffee, or milk"
    assert sentence_list([1, 2, 3, 4], "und") == "1, 2, 3, und 4"


def test_others():
    assert sentence_list(["a", "b"], "or") == "a or b"
    assert sentence_list(["a"], "or") == "a"
    assert sentence_list(["a", "b", "c"]) == "a, b, and c"
