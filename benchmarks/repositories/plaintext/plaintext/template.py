"""A tiny template engine: `{{ path.to.value | filter }}`, `{% if x %}`, `{% for x in xs %}`."""

import html
import re

_TOKEN = re.compile(r"(\{\{.*?\}\}|\{%.*?%\})", re.S)


class TemplateError(Exception):
    """The template is malformed or asks for something unknown."""


FILTERS = {
    "upper": str.upper,
    "lower": str.lower,
    "trim": str.strip,
    "escape": html.escape,
    "title": str.title,
}


def lookup(path, context):
    """The value at a dotted path: dictionary keys, list positions, then attributes."""
    value = context
    for name in path.split("."):
        if isinstance(value, dict):
            if name not in value:
                raise TemplateError(f"unknown name {name!r} in {path!r}")
            value = value[name]
        elif isinstance(value, (list, tuple)) and name.isdigit():
            if int(name) >= len(value):
                raise TemplateError(f"no item {name} in {path!r}")
            value = value[int(name)]
        elif hasattr(value, name) and not name.startswith("_"):
            value = getattr(value, name)
        else:
            raise TemplateError(f"unknown name {name!r} in {path!r}")
    return value


def evaluate(expression, context):
    """The text of `path | filter | filter`; None becomes the empty text."""
    path, *names = (part.strip() for part in expression.split("|"))
    value = lookup(path, context)
    text = "" if value is None else str(value)
    for name in names:
        if name not in FILTERS:
            raise TemplateError(f"unknown filter {name!r}")
        text = FILTERS[name](text)
    return text


def truthy(expression, context):
    """Whether `path` or `not path` holds; an unknown name counts as false."""
    words = expression.split()
    negated = words[0] == "not"
    path = words[-1]
    try:
        value = bool(lookup(path, context))
    except TemplateError:
        value = False
    return value != negated


def render(template, context):
    """Fill in a template. Raises TemplateError for unknown names, unknown tags and open blocks."""
    tokens = _TOKEN.split(template)
    output, position = _render_block(tokens, 0, context, ())
    if position != len(tokens):
        raise TemplateError(f"unexpected {tokens[position]}")
    return output


def _render_block(tokens, position, context, stops):
    """The text up to a tag named in `stops`, and the position of that tag."""
    pieces = []
    while position < len(tokens):
        token = tokens[position]
        if token.startswith("{{"):
            pieces.append(evaluate(token[2:-2], context))
        elif token.startswith("{%"):
            tag, _, argument = token[2:-2].strip().partition(" ")
            if tag in stops:
                return "".join(pieces), position
            text, position = _render_tag(tag, argument, tokens, position, context)
            pieces.append(text)
        else:
            pieces.append(token)
        position += 1
    if stops:
        raise TemplateError(f"missing {stops[-1]}")
    return "".join(pieces), position


def _render_tag(tag, argument, tokens, position, context):
    if tag == "if":
        return _render_if(argument, tokens, position, context)
    if tag == "for":
        return _render_for(argument, tokens, position, context)
    raise TemplateError(f"unexpected {tokens[position]}")


def _render_if(argument, tokens, position, context):
    chosen = truthy(argument, context)
    end = _skip(tokens, position + 1, ("else", "endif"))
    has_else = tokens[end][2:-2].strip() == "else"
    close = _skip(tokens, end + 1, ("endif",)) if has_else else end
    if chosen:
        text, _ = _render_block(tokens, position + 1, context, ("else", "endif"))
    elif has_else:
        text, _ = _render_block(tokens, end + 1, context, ("endif",))
    else:
        text = ""
    return text, close


def _render_for(argument, tokens, position, context):
    name, _, path = argument.partition(" in ")
    if not path:
        raise TemplateError(f"cannot read 'for {argument}'")
    end = _skip(tokens, position + 1, ("endfor",))
    pieces = []
    for number, item in enumerate(lookup(path.strip(), context), start=1):
        inner = {**context, name.strip(): item, "index": number}
        text, _ = _render_block(tokens, position + 1, inner, ("endfor",))
        pieces.append(text)
    return "".join(pieces), end


def _skip(tokens, position, stops):
    """The position of the tag that closes this block, past nested blocks."""
    depth = 0
    for index in range(position, len(tokens)):
        if not tokens[index].startswith("{%"):
            continue
        tag = tokens[index][2:-2].split()[0]
        if depth == 0 and tag in stops:
            return index
        if tag in ("if", "for"):
            depth += 1
        elif tag in ("endif", "endfor"):
            depth -= 1
    raise TemplateError(f"missing {stops[-1]}")
