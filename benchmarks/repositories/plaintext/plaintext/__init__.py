"""Small text tools."""

from plaintext.naming import camel, kebab, pluralize, sentence_list, snake, title
from plaintext.slugs import filename, slugify, unique_slug
from plaintext.stats import common_words, reading_minutes, word_count
from plaintext.tables import markdown_table, text_table
from plaintext.template import TemplateError, render
from plaintext.wrapping import centre, hanging, truncate, wrap

__all__ = [
    "TemplateError",
    "camel",
    "centre",
    "common_words",
    "filename",
    "hanging",
    "kebab",
    "markdown_table",
    "pluralize",
    "reading_minutes",
    "render",
    "sentence_list",
    "slugify",
    "snake",
    "text_table",
    "title",
    "truncate",
    "unique_slug",
    "word_count",
    "wrap",
]
