"""CSV text to rows and back; fields may be quoted with double quotes."""

from inifold.errors import ConfigError


def parse_row(line, separator=",", number=None):
    """The fields of one line. Unquoted fields are stripped; a doubled quote inside quotes is one quote."""
    fields = []
    current = ""
    quoted = inside = False
    index = 0
    while index < len(line):
        letter = line[index]
        if inside:
            if letter == '"' and line[index + 1 : index + 2] == '"':
                current += '"'
                index += 1
            elif letter == '"':
                inside = False
            else:
                current += letter
        elif letter == '"' and not current.strip() and not quoted:
            inside = quoted = True
            current = ""
        elif letter == separator:
            fields.append(current if quoted else current.strip())
            current = ""
            quoted = False
        elif not (quoted and letter.isspace()):
            current += letter
        index += 1
    if inside:
        raise ConfigError("quote is not closed", number)
    fields.append(current if quoted else current.strip())
    return fields


def parse_csv(text, separator=",", comment="#"):
    """Rows of fields; blank lines and comment lines are left out."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith(comment):
            continue
        rows.append(parse_row(line, separator, number))
    return rows


def to_records(rows):
    """Dictionaries keyed by the header row; a short row gets None, a long row is a ConfigError."""
    if not rows:
        return []
    header, *body = rows
    records = []
    for number, row in enumerate(body, start=2):
        if len(row) > len(header):
            raise ConfigError(f"{len(row)} fields, but the header has {len(header)}", number)
        padded = row + [None] * (len(header) - len(row))
        records.append(dict(zip(header, padded, strict=True)))
    return records


def quote_field(value, separator=","):
    """Text of one field, quoted when it has to be."""
    text = "" if value is None else str(value)
    needs_quotes = any(sign in text for sign in (separator, '"', "\n")) or text != text.strip()
    if not needs_quotes:
        return text
    return '"' + text.replace('"', '""') + '"'


def to_csv(rows, separator=","):
    """CSV text, one line per row."""
    return "".join(separator.join(quote_field(value, separator) for value in row) + "\n" for row in rows)


def column(records, name, default=None):
    """One field of each record."""
    return [record.get(name, default) for record in records]


def group_by(records, name):
    """{value: [records]} in the order in which values first appear."""
    groups = {}
    for record in records:
        groups.setdefault(record.get(name), []).append(record)
    return groups
