from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from servicectl.actions import governing, retrain
from servicectl.actions.world import World
from servicectl.clock import Clock
from servicectl.config import Config, DriftConfig, ModelConfig, StateConfig
from servicectl.drift.governor import Limits, Retrain, Rule, Ruling, Wish, govern
from servicectl.errors import Busy
from servicectl.jobs.model import NewJob, Result
from servicectl.jobs.table import StepChange

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
AGE = frozenset({"age"})
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
LIMITS = Limits()


def past(ago: timedelta, outcome: str = "published", causes: frozenset[str] = AGE, **more: object) -> Retrain:
    asked = NOW - ago
    done = None if outcome == "" else asked + MINUTE
    return replace(Retrain("Loan", causes, automatic=True, asked_at=asked, finished_at=done, outcome=outcome), **more)


def ruling(*jobs: Retrain, causes: frozenset[str] = AGE, limits: Limits = LIMITS) -> Ruling:
    [told] = govern([Wish("Loan", causes)], jobs, limits, NOW)
    return told


def test_the_first_retrain_of_an_episode_never_waits() -> None:
    assert ruling() == Ruling("Loan", allowed=True, rule="", reason="", closed=True)


@pytest.mark.parametrize(
    ("job", "rule"),
    [
        (past(DAY, ""), "unfinished"),
        (past(9 * MINUTE), "debounce"),
        (past(9 * MINUTE, causes=frozenset({"city"})), "debounce"),
        (past(11 * MINUTE, causes=frozenset({"city"})), ""),
        (past(11 * MINUTE), "cooldown"),
        (past(5.9 * HOUR, "failed"), "cooldown"),
        (past(6.1 * HOUR), ""),
        (past(9 * MINUTE, automatic=False), ""),
        (past(9 * MINUTE, model_id="House"), ""),
    ],
)
def test_a_second_retrain_waits_for_the_first_and_its_time(job: Retrain, rule: Rule) -> None:
    told = ruling(job)

    assert told.rule == rule
    assert told.allowed == (rule in ("", "unfinished"))


def test_an_unfinished_retrain_is_joined_and_not_doubled() -> None:
    told = ruling(past(MINUTE, "", automatic=False))

    assert (told.allowed, told.rule) == (True, "unfinished")


def rejections(count: int, newest: timedelta, *older: Retrain) -> list[Retrain]:
    return [past(newest + number * DAY, "rejected") for number in range(count)] + list(older)


def test_the_breaker_opens_after_three_rejections_in_a_row_for_the_same_cause() -> None:
    assert ruling(*rejections(2, DAY)).allowed
    told = ruling(*rejections(3, DAY))
    assert (told.allowed, told.rule, told.breaker_open) == (False, "breaker", True)
    assert "3 challengers in a row were not put into production, for age" in told.reason
    assert ruling(*rejections(3, DAY), causes=frozenset({"city"})).allowed


@pytest.mark.parametrize("outcome", ["inconclusive", "refused", "rejected"])
def test_whatever_led_to_no_publish_is_a_retrain_in_vain(outcome: str) -> None:
    assert ruling(*[replace(job, outcome=outcome) for job in rejections(3, DAY)]).rule == "breaker"


def test_a_challenger_that_won_the_gate_and_waits_for_its_publish_neither_opens_nor_closes_the_breaker() -> None:
    assert ruling(past(DAY, "promoted"), *rejections(3, 2 * DAY)).rule == "breaker"
    assert ruling(past(DAY, "promoted"), *rejections(2, 2 * DAY)).rule == ""


def test_a_publish_on_an_operators_word_or_for_another_cause_closes_the_breaker_too() -> None:
    assert ruling(past(DAY, automatic=False), *rejections(3, 2 * DAY)) == Ruling("Loan", True, "", "", closed=True)
    assert ruling(past(DAY, causes=frozenset({"city"})), *rejections(3, 2 * DAY)).rule == ""
    assert ruling(past(DAY, "rejected", automatic=False), *rejections(3, 2 * DAY)).rule == "breaker"


def test_a_promotion_closes_the_breaker_and_older_rejections_are_forgotten() -> None:
    assert ruling(past(DAY), *rejections(5, 2 * DAY)).rule == ""
    assert ruling(*rejections(2, DAY), past(3 * DAY), *rejections(5, 4 * DAY)).rule == ""


def test_after_its_rest_the_breaker_lets_one_more_try_through() -> None:
    told = ruling(*rejections(3, 8 * DAY))

    assert (told.allowed, told.rule, told.breaker_open) == (True, "half-open", True)
    assert ruling(past(DAY, "rejected"), *rejections(3, 9 * DAY)).rule == "breaker"


def test_training_time_within_a_day_is_bounded_over_all_models() -> None:
    limits = Limits(budget=timedelta(minutes=30))
    heavy = past(7 * HOUR, model_id="House", spent=timedelta(minutes=31))

    assert ruling(heavy, limits=limits).rule == "budget"
    assert ruling(replace(heavy, asked_at=NOW - DAY), limits=limits).allowed
    assert ruling(replace(heavy, automatic=False), limits=limits).allowed
    assert ruling(heavy).allowed


def test_500_critical_events_in_ten_minutes_over_40_features_queue_ten_retrains_of_ten_models() -> None:
    chance, jobs, now = random.Random(11), list[Retrain](), NOW
    for _ in range(500):
        now += timedelta(seconds=1.19)
        feature = chance.choice(FEATURES)
        wishes = [Wish(name, frozenset({feature})) for name, used in MODELS.items() if feature in used]
        for told in govern(wishes, jobs, LIMITS, now):
            if told.allowed and told.rule != "unfinished":
                jobs.append(past(NOW - now, "", frozenset({feature}), model_id=told.model_id))
        jobs = [
            replace(job, finished_at=now, outcome="rejected") if not job.outcome and chance.random() < 0.1 else job
            for job in jobs
        ]

    assert sorted(job.model_id for job in jobs) == sorted(MODELS)


# -- with the real job store -----------------------------------------------------------------------------------------------

FEATURES = [f"f{number}" for number in range(40)]
MODELS = {f"M{number}": FEATURES[number * 3 : number * 3 + 8] for number in range(10)}


class Moving:
    """A clock that the test sets."""

    def __init__(self, start: datetime) -> None:
        self.now = start

    def _seconds(self) -> float:
        return (self.now - NOW).total_seconds()

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, monotonic=self._seconds, sleep=lambda _seconds: None)


def world(folder: Path, time: Moving) -> World:
    """A restart of servicectl: nothing in memory."""
    models = {name: ModelConfig(label="y", features=tuple(features)) for name, features in MODELS.items()}
    config = Config(state=StateConfig(str(folder / "state")), models=models, drift=DriftConfig())
    return World(config, clock=time.clock())


def ended(at: World, job_id: str, outcome: str) -> None:
    table = at.runner.table
    claimed = table.claim(job_id, {"pid": 1, "host": "here"})
    assert claimed is not None
    table.complete(claimed[0], Result(outcome), StepChange(), [])


def publish_ended(at: World, retrain_job: str, outcome: str) -> None:
    spec = {"model": "M0", "retrain_job": retrain_job}
    ended(at, at.runner.submit(NewJob("publish", "serving:M0", spec)).job.job_id, outcome)


def check_asks(at: World, causes: dict[str, list[str]]) -> list[str]:
    """One drift-check that wants these models retrained; the ids of the retrains it has, through the real tables."""
    told = governing.rulings(at, causes)
    allowed = [ruling.model_id for ruling in told if ruling.allowed]
    check = at.runner.submit(NewJob("drift-check", f"drift-check {uuid4()}", {})).job
    claimed = at.runner.table.claim(check.job_id, {"pid": 1, "host": "here"})
    assert claimed is not None
    children = [(retrain.job(at, model_id, trigger="drift"), 1, 5) for model_id in allowed]
    result = Result("drift", {"retrain": causes})
    return [job.job_id for job in at.runner.table.complete(claimed[0], result, StepChange(), children)]


def test_critical_events_in_ten_minutes_queue_at_most_one_retrain_per_model(tmp_path: Path) -> None:
    time, chance = Moving(NOW), random.Random(11)
    queued: set[str] = set()
    for _ in range(25):
        time.now += timedelta(seconds=23)
        at = world(tmp_path, time)
        features = chance.sample(FEATURES, 5)
        causes = {name: [f for f in features if f in used] for name, used in MODELS.items()}
        queued.update(check_asks(at, {name: found for name, found in causes.items() if found}))
        for job in at.runner.table.unfinished():
            if chance.random() < 0.5:
                ended(at, job.job_id, chance.choice(["promoted", "rejected"]))

    retrains = world(tmp_path, time).runner.table.newest(kind="retrain", limit=1000)
    assert {job.job_id for job in retrains} == queued
    assert len({job.scope for job in retrains}) == len(queued) == 10


def test_the_breaker_survives_restarts_and_alarms_once_and_ends(tmp_path: Path) -> None:
    time = Moving(NOW)
    told: list[tuple[int, str]] = []
    for night in range(18):
        at = world(tmp_path, time)
        rulings = governing.rulings(at, {"M0": ["f0"]})
        changes = governing.breaker_changes(rulings, at.alarms.standing().verdicts)
        at.alarms.raise_once(str(uuid4()), changes)
        told += [(night, change[2]) for change in changes]
        for job_id in check_asks(at, {"M0": ["f0"]}):
            ended(at, job_id, "promoted" if night == 16 else "rejected")
            if night == 16:
                publish_ended(at, job_id, "published")
        time.now += DAY
    assert told == [(3, "raised"), (17, "cleared")]
    retrains = world(tmp_path, time).runner.table.newest(kind="retrain")
    nights = [(job.created_at.replace(tzinfo=UTC) - NOW).days for job in retrains]
    assert nights == [17, 16, 9, 2, 1, 0]


def test_challengers_that_their_publish_refuses_open_the_breaker(tmp_path: Path) -> None:
    time = Moving(NOW)
    for _ in range(5):
        at = world(tmp_path, time)
        for job_id in check_asks(at, {"M0": ["f0"]}):
            ended(at, job_id, "promoted")
            publish_ended(at, job_id, "rejected-by-canary")
        time.now += DAY

    assert len(world(tmp_path, time).runner.table.newest(kind="retrain")) == 3
    [told] = governing.rulings(world(tmp_path, time), {"M0": ["f0"]})
    assert told.rule == "breaker"
    assert "3 challengers in a row were not put into production" in told.reason


def test_a_timers_published_challenger_closes_the_breaker_that_drift_opened(tmp_path: Path) -> None:
    time = Moving(NOW)
    for _ in range(3):
        at = world(tmp_path, time)
        [job_id] = check_asks(at, {"M0": ["f0"]})
        ended(at, job_id, "rejected")
        time.now += DAY
    at = world(tmp_path, time)
    timers = at.runner.submit(retrain.job(at, "M0", trigger="timer")).job
    ended(at, timers.job_id, "promoted")
    assert not governing.rulings(at, {"M0": ["f0"]})[0].allowed

    publish_ended(at, timers.job_id, "published")

    assert governing.rulings(at, {"M0": ["f0"]})[0].rule == ""


def test_a_caller_that_meets_the_breaker_is_told_and_so_is_the_operator_once(tmp_path: Path) -> None:
    time = Moving(NOW)
    for _ in range(3):
        at = world(tmp_path, time)
        ended(at, at.runner.submit(retrain.job(at, "M0", trigger="grpc")).job.job_id, "rejected")
        time.now += DAY

    for _ in range(2):
        with pytest.raises(Busy, match="3 challengers in a row"):
            governing.require(world(tmp_path, time), "M0")

    [alarm] = world(tmp_path, time).alarms.newest()
    assert (alarm.model_id, alarm.feature, alarm.change, alarm.verdict) == ("M0", "(breaker)", "raised", "CRITICAL")


def test_a_caller_passes_the_same_governor(tmp_path: Path) -> None:
    time = Moving(NOW)
    at = world(tmp_path, time)
    governing.require(at, "M0")
    job = at.runner.submit(retrain.job(at, "M0", trigger="grpc")).job
    governing.require(at, "M0")  # joins it
    ended(at, job.job_id, "promoted")
    time.now += MINUTE
    with pytest.raises(Busy, match="it was retrained moments ago"):
        governing.require(world(tmp_path, time), "M0")


def test_an_unfinished_retrain_with_other_parameters_is_not_doubled(tmp_path: Path) -> None:
    at = world(tmp_path, Moving(NOW))
    at.runner.submit(retrain.job(at, "M0", window="30d", trigger="operator"))

    [told] = governing.rulings(at, {"M0": ["f0"]})

    assert not told.allowed
    assert "with other parameters waits or runs already" in told.reason
