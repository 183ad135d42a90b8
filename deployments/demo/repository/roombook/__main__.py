"""Command line: python -m roombook FILE day | book ROOM START END PERSON | free ROOM | invoice."""

import sys

from roombook import report, store
from roombook.diary import Conflict


def run(arguments):
    """Run one command; return the text to print. Raises ValueError or Conflict."""
    if len(arguments) < 2:
        raise ValueError(__doc__)
    path, command, *rest = arguments
    diary = store.load(path)
    if command == "day":
        return report.day_sheet(diary)
    if command == "invoice":
        return report.invoice(diary)
    if command == "free" and rest:
        return report.free_sheet(diary, rest)
    if command == "book" and len(rest) == 4:
        booking = diary.book(*rest)
        store.save(diary, path)
        return f"booked {booking}"
    raise ValueError(__doc__)


if __name__ == "__main__":
    try:
        print(run(sys.argv[1:]))
    except (ValueError, Conflict) as error:
        sys.exit(str(error))
