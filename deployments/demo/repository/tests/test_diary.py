import pytest

from roombook.diary import Conflict, Diary


@pytest.fixture
def diary():
    diary = Diary()
    diary.book("Oak", "09:00", "10:00", "Ada")
    diary.book("Oak", "13:00", "15:00", "Grace")
    diary.book("Elm", "08:30", "09:30", "Ada")
    return diary


def test_bookings_come_in_order(diary):
    assert [str(b) for b in diary] == ["Elm 08:30-09:30 Ada", "Oak 09:00-10:00 Ada", "Oak 13:00-15:00 Grace"]
    assert len(diary) == 3


def test_a_taken_room_cannot_be_booked(diary):
    with pytest.raises(Conflict, match="taken by Oak 13:00-15:00 Grace"):
        diary.book("Oak", "14:00", "16:00", "Ada")
    assert len(diary) == 3


def test_cancelling_makes_room(diary):
    assert diary.cancel("Oak", 540).person == "Ada"
    assert diary.cancel("Oak", 540) is None
    diary.book("Oak", "09:15", "10:15", "Alan")


def test_bookings_of_a_room_and_of_a_person(diary):
    assert [b.person for b in diary.of_room("Oak")] == ["Ada", "Grace"]
    assert [b.room for b in diary.of_person("ada")] == ["Elm", "Oak"]


def test_free_spans(diary):
    assert diary.free_spans("Oak") == [(480, 540), (600, 780), (900, 1200)]
    assert diary.free_spans("Hall") == [(480, 1200)]
