from roombook import report, store
from roombook.__main__ import run
from roombook.diary import Diary


def day():
    diary = Diary()
    diary.book("Oak", "09:00", "10:00", "Ada")
    diary.book("Oak", "13:00", "14:30", "Grace")
    return diary


def test_room_sign():
    assert report.room_sign(day(), "Oak", 9 * 60) == "Oak: Ada until 10:00"
    assert report.room_sign(day(), "Oak", 10 * 60) == "Oak: free for 3 h"
    assert report.room_sign(day(), "Oak", 16 * 60) == "Oak: free"


def test_sheets():
    assert report.day_sheet(day()) == "Oak 09:00-10:00 Ada\nOak 13:00-14:30 Grace"
    assert report.free_sheet(day(), ["Oak"]) == "Oak: 08:00-09:00, 10:00-13:00, 14:30-20:00"
    assert report.invoice(day()) == "Grace: 12.75\nAda: 8.50"


def test_a_diary_survives_saving(tmp_path):
    path = str(tmp_path / "diary.json")
    store.save(day(), path)
    assert list(store.load(path)) == list(day())


def test_command_line(tmp_path):
    path = str(tmp_path / "diary.json")
    assert run([path, "book", "Oak", "09:00", "10:00", "Ada"]) == "booked Oak 09:00-10:00 Ada"
    assert run([path, "day"]) == "Oak 09:00-10:00 Ada"
    assert run([path, "free", "Oak"]) == "Oak: 08:00-09:00, 10:00-20:00"
