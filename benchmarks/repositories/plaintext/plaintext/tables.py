"""Tables in Markdown and in aligned plain text."""


def _cells(row, count):
    texts = ["" if value is None else str(value) for value in row]
    return texts + [""] * (count - len(texts))


def column_widths(header, rows):
    """The widest cell of each column; a row may be shorter than the header."""
    widths = [len(str(name)) for name in header]
    for row in rows:
        for index, text in enumerate(_cells(row, len(header))):
            widths[index] = max(widths[index], len(text))
    return widths


def is_number(value):
    """True for values that are aligned to the right."""
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float))


def alignments(header, rows):
    """Per column "right" when it holds only numbers (and at least one), else "left"."""
    result = []
    for index in range(len(header)):
        values = [row[index] for row in rows if index < len(row) and row[index] is not None]
        numeric = bool(values) and all(is_number(value) for value in values)
        result.append("right" if numeric else "left")
    return result


def _pad(text, width, alignment):
    return text.rjust(width) if alignment == "right" else text.ljust(width)


def _line(cells, widths, sides, joint):
    return joint.join(_pad(text, width, side) for text, width, side in zip(cells, widths, sides, strict=True))


def text_table(header, rows):
    """Columns two spaces apart with a rule under the header; no spaces at the end of a line."""
    widths = column_widths(header, rows)
    sides = alignments(header, rows)
    lines = [_line(_cells(header, len(header)), widths, sides, "  ")]
    lines.append("  ".join("-" * width for width in widths))
    for row in rows:
        lines.append(_line(_cells(row, len(header)), widths, sides, "  "))
    return "\n".join(line.rstrip() for line in lines)


def escape_cell(text):
    """Text that cannot break a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def markdown_table(header, rows):
    """A Markdown table; numeric columns get a right alignment marker."""
    escaped = [[escape_cell(text) for text in _cells(row, len(header))] for row in rows]
    names = [escape_cell(str(name)) for name in header]
    widths = [max(3, width) for width in column_widths(names, escaped)]
    sides = alignments(header, rows)
    lines = ["| " + _line(names, widths, sides, " | ") + " |"]
    rules = ["-" * (width - 1) + ":" if side == "right" else "-" * width for width, side in zip(widths, sides, strict=True)]
    lines.append("| " + " | ".join(rules) + " |")
    lines.extend("| " + _line(row, widths, sides, " | ") + " |" for row in escaped)
    return "\n".join(lines)


def parse_markdown_row(line):
    """The cells of one Markdown table row, unescaped and stripped."""
    cells = [""]
    escaped = False
    for letter in line.strip().removeprefix("|"):
        if escaped:
            cells[-1] += letter
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == "|":
            cells.append("")
        else:
            cells[-1] += letter
    if cells[-1].strip() == "":
        cells.pop()
    return [cell.strip() for cell in cells]


def sort_rows(rows, column, descending=False):
    """Rows ordered by one column; rows with the same value keep their order, None comes last."""
    known = [row for row in rows if row[column] is not None]
    unknown = [row for row in rows if row[column] is None]
    return sorted(known, key=lambda row: row[column], reverse=descending) + unknown
