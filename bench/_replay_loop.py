"""servicectl's loop in `bench replay`: one look after another, by the functions that the commands use.

What the features did is decided by `drift.judgement` and `drift.policy`, lost score by `training.decay` and `drift.decay`, what
that pulls by `drift.trigger`, whether it may happen now by `drift.governor`, what comes of it by the floor's own gate, with
the error rate that earlier challengers of the champion have left over. Not here: the handler, files of windows, the job
store, publishing. A look stands for a night: that is the clock of cooldown and breaker. All labels have arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench._replay_floor import Challenger, Stream

if TYPE_CHECKING:
    from servicectl.drift.governor import Retrain
    from servicectl.drift.trigger import Trigger
    from servicectl.training.frame import Rows
    from servicectl.training.spec import TrainingSpec, Verdict

_MODEL = "replayed"
_FIRST_NIGHT = datetime(2026, 1, 1, tzinfo=UTC)
_MOST_ROWS, _LEAST_ROWS = 20_000, 500  # of a measurement of decay
_RESAMPLES = 100  # of a calibration; the command takes 200, which costs twice as much and changes little


@dataclass(frozen=True)
class Settings:
    """How servicectl is configured; the rest is as shipped. `calibrated`: `drift-check --calibrate` before each look.
    `cooldown`: in looks."""

    trigger: Trigger = "drift"
    calibrated: bool = False
    window: str | None = None
    heldout_fraction: float = 0.2
    gate: Literal["judge", "always"] = "judge"
    alpha: float = 0.05
    min_improvement: float = 0.0
    effect_floor_decay: float = 0.05
    false_alarms: float = 0.01
    cooldown: float = 0.25

    @property
    def of_training(self) -> dict[str, Any]:
        return {"window_auto": self.window == "auto", "heldout_fraction": self.heldout_fraction}


@dataclass
class Loop:
    """One model in production, and what servicectl remembers of it. `held_back`: looks at which the governor said no."""

    stream: Stream
    settings: Settings
    champion: Challenger
    judged: tuple[int, int]  # the rows that the champion was judged on when it was published, by place
    recorded: float  # its score on them
    learnt_until: np.datetime64  # the newest row it was trained on, or that it or a challenger was judged on
    retrains: list[Retrain] = field(default_factory=list)
    earlier: int = 0
    promoted: int = 0
    held_back: int = 0
    seconds: float = 0.0  # of training

    @classmethod
    def begun(cls, stream: Stream, settings: Settings, end: int) -> Loop:
        """With servicectl's own first model of these rows, which floors let through: the heldout ones are not in it."""
        from servicectl.training.metrics import measure_all, outputs

        first = stream.trained(end, **settings.of_training)
        heldout = int(np.searchsorted(stream.rows.times[:end], first.rows.times[-1], side="right"))
        said = outputs(first.model, stream.rows.part(slice(heldout, end)), stream.spec)
        score = measure_all(said, stream.spec)[stream.spec.main_metric]
        return cls(stream, settings, first, (heldout, end), score, stream.rows.times[end - 1], seconds=first.seconds)

    def look(self, night: int, end: int) -> None:
        """One drift-check when there are `end` rows, and the retrain that it asks for."""
        from servicectl.drift.governor import Limits, Retrain, Wish, govern

        causes = self._pulled(end)
        if not causes:
            return
        now = _FIRST_NIGHT + timedelta(days=night)
        wish = Wish(_MODEL, frozenset(causes))
        [ruling] = govern([wish], self.retrains, Limits(cooldown=timedelta(days=self.settings.cooldown)), now)
        if not ruling.allowed:
            self.held_back += 1
            return
        outcome, spent = self._retrained(end)
        self.retrains.append(Retrain(_MODEL, wish.causes, True, now, now + spent, outcome, spent))

    def _pulled(self, end: int) -> tuple[str, ...]:
        from servicectl.drift.trigger import pull

        drifted = () if self.settings.trigger == "decay" else self._drifted(end)
        decay = None if self.settings.trigger == "drift" else self._decayed(end)
        return pull(self.settings.trigger, drifted, decay).causes

    def _drifted(self, end: int) -> tuple[str, ...]:
        """The features that a check by the builtin statistics would retrain for: the sample that was kept of what the
        champion learnt from, against the newest rows."""
        from servicectl.drift import policy
        from servicectl.drift.comparison import compare
        from servicectl.drift.judgement import Rules, judge
        from servicectl.drift.values import Asked, FeatureRows
        from servicectl.drift.windows_sql import CURRENT_FROM

        spec, rows = self.stream.spec, self.stream.rows
        newest = rows.part(slice(int(end * CURRENT_FROM), end))
        evidence = [
            compare(name, column(self.champion.sample, name), column(newest, name), declared_category=name in spec.categorical)
            for name in spec.features
        ]  # fmt: skip
        cut_offs = calibrated(self.stream, end) if self.settings.calibrated else {}
        answers = {_MODEL: judge(evidence, Rules(false_alarms=self.settings.false_alarms, cut_offs=cut_offs))}
        counted = dict.fromkeys(spec.features, FeatureRows(end, 0, _datetime(rows.times[end - 1])))
        asked = [Asked(_MODEL, "1", spec.features, _datetime(self.learnt_until))]
        findings = policy.decide(asked, answers, counted, policy.Settings())
        return policy.affected(findings, {_MODEL: spec.features}).get(_MODEL, ())

    def _decayed(self, end: int) -> Any:
        """The verdict on the champion's score, on as many of its own rows and of newer ones as the check takes."""
        from servicectl.drift.decay import Lost, judge
        from servicectl.drift.values import Verdict
        from servicectl.training.decay import lost

        start, until = self.judged
        most = min(_MOST_ROWS, max(_LEAST_ROWS, until - start))
        places, known = np.arange(end), self.stream.rows.part(slice(0, end))
        found = lost(
            lambda: self.champion.model,
            known,
            (places >= max(start, until - most)) & (places < until),
            places >= max(until, end - most),
            self.stream.spec,
            recorded=self.recorded,
            alpha=self.settings.false_alarms,
            min_blocks=15,
        )
        if found.why_not:
            return Verdict.NOT_MEASURED
        told = Lost(found.metric, found.before, found.now, found.difference, found.high, found.blocks, found.rows_now)
        return judge(told, self.settings.effect_floor_decay).verdict

    def _retrained(self, end: int) -> tuple[str, timedelta]:
        from servicectl.drift.governor import PUBLISHED
        from servicectl.training.spec import GateSpec

        changes = self.settings.of_training
        challenger = self.stream.trained(end, **changes)
        gate = GateSpec(
            mode=self.settings.gate,
            alpha=self.settings.alpha,
            min_improvement=self.settings.min_improvement,
            earlier_challengers=self.earlier,
        )
        verdict = self.stream.judged(end, challenger, self.champion, gate, changes)
        self.seconds += challenger.seconds
        self.learnt_until = self.stream.rows.times[end - 1]
        spent = timedelta(seconds=challenger.seconds)
        if verdict.decision != "PROMOTE":
            # As `retrain` counts them: what could not be compared took no chance.
            self.earlier += _compared(verdict, gate.min_blocks)
            return ("rejected" if verdict.decision == "REJECT" else "inconclusive"), spent
        self.champion, self.earlier, self.promoted = challenger, 0, self.promoted + 1
        self.judged, self.recorded = (end - verdict.rows, end), verdict.challenger[verdict.metric]
        return PUBLISHED, spent


def _compared(verdict: Verdict, min_blocks: int) -> bool:
    return verdict.interval is not None and verdict.blocks >= min_blocks


def calibrated(stream: Stream, end: int) -> dict[str, float]:
    """The cut-offs of the rows before the newest window, in multiples of the floor."""
    if end not in stream.cut_offs:
        stream.cut_offs[end] = _cut_offs(stream.rows.part(slice(0, end)), stream.spec)
    return stream.cut_offs[end]


def _cut_offs(rows: Rows, spec: TrainingSpec) -> dict[str, float]:
    from servicectl.drift.calibration import cut_off
    from servicectl.drift.judgement import Rules
    from servicectl.drift.windows_sql import CURRENT_FROM

    rules, found = Rules(), {}
    for name in spec.features:
        history = rows.features[name][: int(len(rows) * CURRENT_FROM)]
        text = history.dtype == object
        told = cut_off(
            np.unique(history.astype(str), return_inverse=True)[1].astype(np.float64) if text else history,
            rules.false_alarms / len(spec.features),
            category=name in spec.categorical,
            text=text,
            resamples=_RESAMPLES,
        )
        if told is not None:
            found[name] = max(told.ks / rules.effect_floor_ks, told.share_change / rules.effect_floor_share)
    return found


def column(rows: Rows, name: str) -> Any:
    """One feature as the drift statistics take it."""
    from servicectl.drift.comparison import Column
    from servicectl.training.frame import absent

    values: NDArray[Any] = rows.features[name]
    if values.dtype != object:
        return Column(values)
    missing = absent(values)
    return Column(values[~missing].astype(str), absent_text=int(missing.sum()))


def answers(model: Any, rows: Rows, spec: TrainingSpec) -> tuple[NDArray[Any], NDArray[Any]]:
    """What is true and what a model says."""
    from servicectl.training.fit import LABELS_ATTRIBUTE

    said = np.asarray(model.predict(rows.frame()))
    classes: Sequence[Any] | None = getattr(model, LABELS_ATTRIBUTE, None)
    if spec.task == "classification" and classes is not None:
        said = np.array([classes[int(code)] for code in said], dtype=object)
    return rows.labels, said


def _datetime(moment: np.datetime64) -> datetime:
    from servicectl.training.frame import moment as aware

    return aware(moment)
