import pytest

from roombook.bookings import Booking, make_booking, overlaps


def booking(start, end, room="Oak"):
    return make_booking(room, start, end, "Ada")


def test_make_booking_reads_what_people_type():
    assert make_booking(" Oak ", "09:00", "10:30", "Ada ") == Booking("Oak", 540, 630, "Ada")


def test_a_booking_tells_its_length_and_itself():
    assert booking("09:00", "10:30").length == 90
    assert str(booking("09:00", "10:30")) == "Oak 09:00-10:30 Ada"


@pytest.mark.parametrize(("start", "end"), [("09:00", "09:10"), ("10:00", "09:00"), ("07:00", "09:00"), ("19:00", "20:30")])
def test_impossible_bookings_are_refused(start, end):
    with pytest.raises(ValueError):
        booking(start, end)


def test_bookings_at_the_same_time_overlap():
    assert overlaps(booking("09:00", "10:00"), booking("09:30", "10:30"))
    assert overlaps(booking("09:30", "10:30"), booking("09:00", "10:00"))
    assert overlaps(booking("09:00", "12:00"), booking("10:00", "11:00"))
    assert overlaps(booking("09:00", "10:00"), booking("09:00", "10:00"))


def test_bookings_one_after_the_other_do_not_overlap():
    assert not overlaps(booking("09:00", "10:00"), booking("10:00", "11:00"))
    assert not overlaps(booking("11:00", "12:00"), booking("09:00", "10:00"))


def test_bookings_of_different_rooms_do_not_overlap():
    assert not overlaps(booking("09:00", "10:00"), booking("09:00", "10:00", room="Elm"))
