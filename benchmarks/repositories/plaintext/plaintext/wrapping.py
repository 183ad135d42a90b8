"""Laying out paragraphs in a fixed width."""


def wrap(text, width=72):
    """Lines of at most `width` characters, broken at spaces; longer words get a line of their own."""
    if width < 1:
        raise ValueError(f"width must be positive, not {width}")
    lines = []
    current = ""
    for word in text.split():
        candidate = f"{current} {word}" if current else word
        if len(candidate) <= width:
            current = candidate
        else:
            if current:
                lines.append(current)
            current = word
    if current:
        lines.append(current)
    return lines


def wrap_paragraphs(text, width=72):
    """Wrap each paragraph on its own; paragraphs stay separated by one empty line."""
    paragraphs = []
    current = []
    for line in text.splitlines():
        if line.strip():
            current.append(line)
        elif current:
            paragraphs.append(" ".join(current))
            current = []
    if current:
        paragraphs.append(" ".join(current))
    return "\n\n".join("\n".join(wrap(paragraph, width)) for paragraph in paragraphs)


def hanging(text, width=72, bullet="- "):
    """A list item: the first line starts with the bullet, the others are indented to match."""
    lines = wrap(text, width - len(bullet))
    indent = " " * len(bullet)
    return "\n".join((bullet if number == 0 else indent) + line for number, line in enumerate(lines))


def indent(text, prefix="    ", skip_empty=True):
    """Put `prefix` before each line."""
    lines = text.split("\n")
    return "\n".join(line if skip_empty and not line.strip() else prefix + line for line in lines)


def dedent(text):
    """Remove the indentation that all lines with text share."""
    lines = text.split("\n")
    depths = [len(line) - len(line.lstrip(" ")) for line in lines if line.strip()]
    depth = min(depths, default=0)
    return "\n".join(line[depth:] if line.strip() else "" for line in lines)


def truncate(text, width, marker="..."):
    """At most `width` characters; a cut text ends with the marker and has no space before it."""
    if len(text) <= width:
        return text
    if width <= len(marker):
        return marker[:width]
    return text[: width - len(marker)].rstrip() + marker


def truncate_words(text, count, marker="..."):
    """The first `count` words, with the marker when words were left out."""
    words = text.split()
    if len(words) <= count:
        return " ".join(words)
    return " ".join(words[:count]) + marker


def centre(text, width, fill=" "):
    """Text in the middle; with an odd rest the extra fill goes to the right."""
    rest = width - len(text)
    if rest <= 0:
        return text
    left = rest // 2
    return fill * left + text + fill * (rest - left)
