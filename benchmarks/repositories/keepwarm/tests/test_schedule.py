import pytest

from keepwarm.schedule import Scheduler


def test_after(clock):
    done = []
    scheduler = Scheduler(clock)
    scheduler.after(5, lambda: done.append("x"))
    assert scheduler.run_due() == 0
    clock.advance(5)
    assert scheduler.run_due() == 1
    assert done == ["x"]


def test_order(clock):
    done = []
    scheduler = Scheduler(clock)
    scheduler.after(9, lambda: done.append("late"))
    scheduler.after(1, lambda: done.append("early"))
    clock.advance(10)
    scheduler.run_due()
    assert done == ["early", "late"]


def test_every(clock):
    done = []
    scheduler = Scheduler(clock)
    scheduler.every(10, lambda: done.append(clock()))
    for _ in range(3):
        clock.advance(10)
        scheduler.run_due()
    assert len(done) == 3


def test_a_late_run_stays_on_the_grid(clock):
    scheduler = Scheduler(clock)
    scheduler.every(10, lambda: None)
    clock.advance(13)
    assert scheduler.run_due() == 1
    assert scheduler.seconds_to_next() == 7


def test_start_now(clock):
    done = []
    scheduler = Scheduler(clock)
    scheduler.every(10, lambda: done.append(1), start_now=True)
    scheduler.run_due()
    assert done == [1]


def test_cancel(clock):
    done = []
    scheduler = Scheduler(clock)
    job = scheduler.after(1, lambda: done.append(1))
    scheduler.cancel(job)
    clock.advance(2)
    scheduler.run_due()
    assert done == []
    assert scheduler.pending() == 0


def test_seconds_to_next(clock):
    scheduler = Scheduler(clock)
    assert scheduler.seconds_to_next() is None
    scheduler.after(5, lambda: None)
    assert scheduler.seconds_to_next() == 5


def test_interval_must_be_positive(clock):
    with pytest.raises(ValueError):
        Scheduler(clock).every(0, lambda: None)
