"""Counting words."""

import math
import re
from collections import Counter

_WORD = re.compile(r"[A-Za-z0-9]+(?:['’-][A-Za-z0-9]+)*")
STOP_WORDS = frozenset("a an and are as at be but by for from in is it of on or that the this to was with".split())


def tokens(text):
    """The words of a text, lower case; "don't" and "well-known" are one word each."""
    return [word.lower() for word in _WORD.findall(text)]


def word_count(text):
    return len(tokens(text))


def reading_minutes(text, words_per_minute=200):
    """Whole minutes, rounded up; an empty text takes 0, any other at least 1."""
    return math.ceil(word_count(text) / words_per_minute)


def common_words(text, count=5, stop_words=STOP_WORDS):
    """The most frequent words as (word, times), most frequent first, ties in alphabetical order."""
    counted = Counter(word for word in tokens(text) if word not in stop_words)
    return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))[:count]


def average_word_length(text):
    """Mean number of characters of a word; 0.0 for a text without words."""
    found = tokens(text)
    if not found:
        return 0.0
    return sum(len(word) for word in found) / len(found)


def longest_words(text, count=3):
    """Distinct words, longest first, ties in alphabetical order."""
    return sorted(set(tokens(text)), key=lambda word: (-len(word), word))[:count]


def similarity(first, second):
    """Share of distinct words that two texts have in common, 0.0 to 1.0; 1.0 when both are empty."""
    left, right = set(tokens(first)), set(tokens(second))
    if not left and not right:
        return 1.0
    return len(left & right) / len(left | right)
