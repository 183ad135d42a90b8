"""Jobs that come due. Nothing runs by itself: call `run_due` from a loop."""

import heapq
import itertools
import time


class Job:
    """One planned call. `every` is the interval of a repeating job, else None."""

    def __init__(self, number, due, action, every=None):
        self.number = number
        self.due = due
        self.action = action
        self.every = every
        self.runs = 0
        self.cancelled = False


class Scheduler:
    """Runs jobs in the order of their due time; jobs due at the same time run in the order they were added."""

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._queue = []
        self._numbers = itertools.count()

    def _push(self, job):
        heapq.heappush(self._queue, (job.due, job.number, job))

    def after(self, seconds, action):
        """Run once in `seconds` from now. Returns the job."""
        job = Job(next(self._numbers), self._clock() + seconds, action)
        self._push(job)
        return job

    def every(self, seconds, action, start_now=False):
        """Run again and again; the first time after one interval, or at once with `start_now`."""
        if seconds <= 0:
            raise ValueError(f"interval must be positive, not {seconds}")
        first = self._clock() + (0 if start_now else seconds)
        job = Job(next(self._numbers), first, action, every=seconds)
        self._push(job)
        return job

    def cancel(self, job):
        """Never run the job again."""
        job.cancelled = True

    def pending(self):
        """Number of jobs that are still to run."""
        return sum(1 for _, _, job in self._queue if not job.cancelled)

    def seconds_to_next(self):
        """Seconds until the next job is due (0 when it is overdue), or None without jobs."""
        dues = [due for due, _, job in self._queue if not job.cancelled]
        if not dues:
            return None
        return max(0, min(dues) - self._clock())

    def run_due(self):
        """Run every job that is due now, each at most once. Returns how many ran.

        A repeating job that missed several intervals runs once; its next time is the first one
        on its own grid that lies in the future.
        """
        now = self._clock()
        ready = []
        while self._queue and self._queue[0][0] <= now:
            _, _, job = heapq.heappop(self._queue)
            if not job.cancelled:
                ready.append(job)
        ran = 0
        for job in ready:
            if job.cancelled:
                continue
            job.action()
            job.runs += 1
            ran += 1
            if job.every is not None and not job.cancelled:
                missed = int((now - job.due) // job.every) + 1
                job.due += missed * job.every
                self._push(job)
        return ran
