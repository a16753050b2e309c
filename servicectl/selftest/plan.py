"""Where to kill: the boundaries that a recording run passed, instants at random, and a fair choice of few."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servicectl.errors import UsageError

_INSTANT = re.compile(r"(\d+)ms(:group)?")
_MOMENTS = ("before", "effect", "recorded")
_RANDOM_SHARE = 4  # of a sample, one kill in so many is at random


@dataclass(frozen=True)
class AtPoint:
    """A crash point's name, with @2, @3 ... for the second and third time that a process comes by."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def moment(self) -> str:
        """What kind of boundary it is: one of five of the engine, or a place inside a step."""
        parts = self.name.partition("@")[0].split("/")
        if parts[-1] in ("submitted", "claimed") or parts[-2:-1] == ["complete"]:
            return "/".join(parts[1:])
        inside = parts[0] in ("artifacts", "training")
        return parts[-1] if parts[-1] in _MOMENTS and not inside else "inside a step"


@dataclass(frozen=True)
class AtInstant:
    """SIGKILL from outside, to the command's process alone or to its whole process group."""

    milliseconds: int
    whole_group: bool

    def __str__(self) -> str:
        return f"{self.milliseconds}ms{':group' if self.whole_group else ''}"


Kill = AtPoint | AtInstant


def kill_at(text: str) -> Kill:
    """Given what a report names, the kill: `publish/swap/effect`, `184ms` or `184ms:group`. Raises UsageError."""
    if (instant := _INSTANT.fullmatch(text)) is not None:
        return AtInstant(int(instant[1]), bool(instant[2]))
    if "/" not in text:
        raise UsageError(
            f"--at {text}: neither a crash point nor an instant", cure="write publish/swap/effect or 184ms"
        )
    return AtPoint(text)


def boundaries(trace: Sequence[str]) -> tuple[AtPoint, ...]:
    """Given a recording run's lines `<process> <point>`, every boundary in the order of its first passing."""
    passed: Counter[tuple[str, str]] = Counter()
    found: dict[AtPoint, None] = {}
    for line in trace:
        process, _, name = line.partition(" ")
        passed[process, name] += 1
        times = passed[process, name]
        found[AtPoint(name if times == 1 else f"{name}@{times}")] = None
    return tuple(found)


def was_reached(kill: AtPoint, trace: Sequence[str]) -> bool:
    return kill in boundaries(trace)


@dataclass(frozen=True)
class Known:
    """What the plan must know of a scenario: its boundaries, and how long it takes undisturbed."""

    boundaries: tuple[AtPoint, ...]
    seconds: float


def planned(known: Mapping[str, Known], kills: int, seed: int) -> list[tuple[str, Kill]]:
    """Given scenarios by name, `kills` kills: every boundary and instants at random, or a sample of both.

    A sample is chosen by the seed so that every scenario and every kind of boundary is in it (if `kills` suffices),
    and slow scenarios get fewer.
    """
    everything = [(name, boundary) for name, one in known.items() for boundary in one.boundaries]
    sampled = kills < len(everything)
    once_each = sum(bool(one.boundaries) for one in known.values())
    at_random = min(kills // _RANDOM_SHARE, max(0, kills - once_each)) if sampled else kills - len(everything)
    chosen = _sample(known, kills - at_random, seed) if sampled else everything
    spent = dict.fromkeys(known, 0.0)
    instants: Counter[str] = Counter()
    plan: list[tuple[str, Kill]] = [*chosen]
    for _ in range(at_random):
        name = min(known, key=lambda name: (spent[name], name))
        spent[name] += math.sqrt(known[name].seconds)  # what takes long has more instants worth trying
        plan.append((name, _instant(known[name], seed, name, instants[name])))
        instants[name] += 1
    order = {name: place for place, name in enumerate(known)}
    return sorted(plan, key=lambda one: order[one[0]])


def _sample(known: Mapping[str, Known], wanted: int, seed: int) -> list[tuple[str, AtPoint]]:
    draw = random.Random(seed)  # noqa: S311 -- a reproducible choice, no secret
    left = {name: draw.sample(one.boundaries, len(one.boundaries)) for name, one in known.items() if one.boundaries}
    spent = dict.fromkeys(left, 0.0)
    covered: Counter[str] = Counter()
    chosen: list[tuple[str, AtPoint]] = []
    while len(chosen) < wanted and any(left.values()):
        name = min((name for name in left if left[name]), key=lambda name: (spent[name], name))
        boundary = min(left[name], key=lambda one: covered[one.moment])
        left[name].remove(boundary)
        covered[boundary.moment] += 1
        spent[name] += known[name].seconds
        chosen.append((name, boundary))
    return chosen


def _instant(known: Known, seed: int, name: str, number: int) -> AtInstant:
    draw = random.Random(f"{seed} {name} {number}")  # noqa: S311 -- as above
    return AtInstant(round(draw.uniform(0, known.seconds) * 1000), whole_group=number % 2 == 1)
