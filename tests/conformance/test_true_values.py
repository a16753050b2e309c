"""The two waits of the estate at their true length; everywhere else in this suite they are shortened."""

from __future__ import annotations

from collections.abc import Callable

from servicectl.estate.queue import HANDLER
from tests.conformance.conftest import TrueValues
from tests.conformance.traps import trap


@trap(1)
def test_trap_01_a_silent_handler_is_given_up_after_thirty_seconds_and_is_not_taken_for_a_silent_redis(
    true_values: Callable[[], TrueValues],
) -> None:
    silence = true_values().silence
    assert silence is not None
    assert silence.party == HANDLER
    assert "no answer within 30 s" in silence.message


@trap(14)
def test_trap_14_rows_of_the_write_queue_are_there_with_the_next_batch_and_not_at_once(
    true_values: Callable[[], TrueValues],
) -> None:
    told = true_values()
    assert (told.seen_at_once, told.seen_later) == (1, 2)
