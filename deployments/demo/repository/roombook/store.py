"""Keeps a diary in a JSON file."""

import json
import os

from roombook.bookings import Booking
from roombook.diary import Diary


def load(path):
    """Read the diary from a file; a file that is not there is an empty diary."""
    if not os.path.exists(path):
        return Diary()
    with open(path, encoding="utf-8") as file:
        records = json.load(file)
    return Diary(Booking(r["room"], r["start"], r["end"], r["person"]) for r in records)


def save(diary, path):
    """Write the diary to a file; readers never see half of it."""
    records = [{"room": b.room, "start": b.start, "end": b.end, "person": b.person} for b in diary]
    unfinished = f"{path}.new"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(records, file, indent=1)
    os.replace(unfinished, path)
