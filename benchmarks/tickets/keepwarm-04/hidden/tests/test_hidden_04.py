from keepwarm.bucket import TokenBucket


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_never_more_than_the_capacity():
    clock = Clock()
    bucket = TokenBucket(2, 10, clock)
    clock.now = 3600
    assert bucket.tokens == 10
    assert [bucket.take(5), bucket.take(5), bucket.take(1)] == [True, True, False]


def test_refill_below_the_capacity():
    clock = Clock()
    bucket = TokenBucket(2, 10, clock)
    assert bucket.take(10)
    clock.now = 2
    assert bucket.tokens == 4
    clock.now = 5
    assert bucket.tokens == 10
    clock.now = 50
    assert bucket.tokens == 10
