from keepwarm.schedule import Scheduler


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def runs_at(late):
    clock, times = Clock(), []
    scheduler = Scheduler(clock)
    scheduler.every(10, lambda: times.append(clock.now))
    for moment in late:
        clock.now = moment
        scheduler.run_due()
    return times, scheduler.seconds_to_next()


def test_late_runs_do_not_shift_the_next():
    assert runs_at([1013, 1019, 1020, 1034]) == ([1013, 1020, 1034], 6)


def test_missed_intervals_run_once():
    assert runs_at([1047, 1049]) == ([1047], 1)


def test_exactly_on_time():
    assert runs_at([1010, 1020]) == ([1010, 1020], 10)
    assert runs_at([1030]) == ([1030], 10)
