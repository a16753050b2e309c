from __future__ import annotations

from datetime import UTC, datetime

from servicectl.clock import Clock
from servicectl.listener.guard import TokenBucket


class Hand:
    """A monotonic clock that moves when told to."""

    at = 1000.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: datetime.now(UTC), monotonic=lambda: self.at, sleep=lambda _: None)


def passing(bucket: TokenBucket, tries: int) -> int:
    return sum(bucket.take() for _ in range(tries))


def test_a_burst_passes_at_once_and_then_only_what_time_brings() -> None:
    hand = Hand()
    bucket = TokenBucket(rate=2, burst=5, clock=hand.clock)

    assert passing(bucket, 10) == 5
    hand.at += 1.4
    assert passing(bucket, 10) == 2
    hand.at += 0.1
    assert passing(bucket, 10) == 1


def test_a_long_silence_saves_up_no_more_than_one_burst() -> None:
    hand = Hand()
    bucket = TokenBucket(rate=2, burst=5, clock=hand.clock)
    hand.at += 86400

    assert passing(bucket, 100) == 5
