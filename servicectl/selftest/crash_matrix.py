"""Kill, resume, compare: every scenario undisturbed once, then killed at every boundary and at random instants."""

from __future__ import annotations

import json
import os
import shlex
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from servicectl.errors import ExitStatus, ServicectlError, UsageError
from servicectl.selftest import forkserver
from servicectl.selftest.picture import Picture, broken_pointers, differences, picture
from servicectl.selftest.places import places
from servicectl.selftest.plan import AtInstant, AtPoint, Kill, Known, boundaries, planned, was_reached
from servicectl.selftest.scenarios import RESUME, SCENARIOS, Scenario
from servicectl.selftest.site import Site, World

_RESUMES = 10
_TRIES = 3  # of an undisturbed run
_MISSES = 5  # a process that ended before its kill is killed earlier, so often
_FREE_BYTES = 2 << 30
_MEMORY = Path("/dev/shm")  # noqa: S108 -- a folder of our own is made in it

Done = TypeVar("Done")


@dataclass(frozen=True)
class Options:
    """`kills` in all; `actions` empty: every scenario; `at`: only this kill. `kept` is made for a first difference."""

    kills: int
    workers: int
    seed: int
    kept: Path
    actions: tuple[str, ...] = ()
    at: Kill | None = None
    artifacts: str | None = None
    connection_string: str | None = None
    preload: tuple[str, ...] = ()  # modules that the commands' process imports beside ours


@dataclass(frozen=True)
class Undisturbed:
    """A scenario that nobody killed."""

    scenario: Scenario
    begin: World
    before: Picture
    end: World
    after: Picture
    kinds: frozenset[str]
    known: Known


@dataclass(frozen=True)
class Killed:
    """One kill and what came of it. `problems` is empty when everything is as if it had not happened."""

    action: str
    kill: Kill
    reached: bool
    resumes: int
    problems: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Report:
    undisturbed: Mapping[str, Undisturbed]
    killed: Sequence[Killed]
    kinds_without: tuple[str, ...]
    seconds: float
    first: Killed | None
    reproduction: str | None

    @property
    def kills(self) -> int:
        return sum(one.reached for one in self.killed)

    @property
    def differences(self) -> int:
        """Kills after which something was different."""
        return sum(bool(one.problems) for one in self.killed)

    @property
    def unreached(self) -> list[Killed]:
        return [one for one in self.killed if not one.reached]

    @property
    def is_clean(self) -> bool:
        """Nothing was different, and every kill that was planned happened."""
        return bool(self.killed) and not (self.differences or self.unreached or self.kinds_without)


@dataclass
class Matrix:
    options: Options
    scenarios: Sequence[Scenario] = SCENARIOS
    tell: Callable[[str], None] = lambda _: None
    _since: str = field(init=False, default_factory=lambda: datetime.now(UTC).date().isoformat())
    _sites: SimpleQueue[Site | ServicectlError] = field(init=False, default_factory=SimpleQueue)
    _keeping: threading.Lock = field(init=False, default_factory=threading.Lock)
    _first: Killed | None = field(init=False, default=None)

    def run(self, kinds: Sequence[str]) -> Report:
        """Given every kind of job there is, the report. Raises ServicectlError when something cannot be prepared."""
        started = time.monotonic()
        wanted = self._wanted()
        with self._running() as (pool, folder):
            undisturbed = self._recorded(pool, folder, [one for one in wanted if not one.at_random_only], {})
            if self._is_no_sample(undisturbed):
                undisturbed = self._recorded(pool, folder, wanted, undisturbed)
            chosen = {one.name: undisturbed[one.name] for one in wanted if one.name in undisturbed}
            plan = self._plan(chosen)
            killed = self._killed(pool, chosen, plan)
        seen = frozenset[str]().union(*(one.kinds for one in undisturbed.values()))
        without = () if self.options.actions else tuple(sorted(set(kinds) - seen))
        first = self._first
        told = None if first is None else self._reproduction(first)
        return Report(chosen, killed, without, time.monotonic() - started, first, told)

    def _wanted(self) -> list[Scenario]:
        if unknown := sorted(set(self.options.actions) - {one.name for one in self.scenarios}):
            known = ", ".join(repr(one.name) for one in self.scenarios)
            raise UsageError(f"--action {unknown[0]!r} is none of: {known}")
        return [one for one in self.scenarios if not self.options.actions or one.name in self.options.actions]

    @contextmanager
    def _running(self) -> Iterator[tuple[ThreadPoolExecutor, Path]]:
        """Workers with a site each, which they find in the queue as soon as it is up."""
        options = self.options
        with ExitStack() as running:
            folder = Path(
                running.enter_context(tempfile.TemporaryDirectory(prefix="servicectl-selftest-", dir=_fast()))
            )
            found = running.enter_context(places(options.artifacts, options.connection_string, folder, options.workers))
            sites = [Site(folder / f"worker-{n}", place, options.preload) for n, place in enumerate(found, 1)]
            for site in sites:
                running.push(site)
            pool = ThreadPoolExecutor(options.workers, thread_name_prefix="selftest")
            running.callback(pool.shutdown, cancel_futures=True)
            for site in sites:
                running.callback(site.stop)
            starting = [threading.Thread(target=self._start, args=(site,)) for site in sites]
            for thread in starting:
                thread.start()
            for thread in starting:
                running.callback(thread.join)
            yield pool, folder

    def _start(self, site: Site) -> None:
        try:
            site.__enter__()
        except (ServicectlError, OSError) as error:
            self._sites.put(error if isinstance(error, ServicectlError) else ServicectlError(str(error)))
        else:
            self._sites.put(site)

    def _with_a_site(self, work: Callable[[Site], Done]) -> Done:
        site = self._sites.get()
        try:
            if isinstance(site, ServicectlError):
                raise site
            return work(site)
        finally:
            self._sites.put(site)

    # Undisturbed

    def _recorded(
        self, pool: ThreadPoolExecutor, folder: Path, wanted: Sequence[Scenario], before: Mapping[str, Undisturbed]
    ) -> dict[str, Undisturbed]:
        """What was recorded before, and every scenario that is wanted or that another one begins after.

        Each as soon as its beginning is there.
        """
        by_name = {one.name: one for one in self.scenarios}
        waiting: dict[str, Scenario] = {}
        for one in wanted:
            at: Scenario | None = one
            while at is not None:
                waiting[at.name] = at
                at = by_name[at.begins] if at.begins else None
        waiting = {name: by_name[name] for name in by_name if name in waiting and name not in before}
        done = dict(before)
        running: dict[Future[Undisturbed], str] = {}
        while waiting or running:
            for name, scenario in list(waiting.items()):
                if scenario.begins is None or scenario.begins in done:
                    begin = done[scenario.begins].end if scenario.begins else None
                    running[pool.submit(self._record, waiting.pop(name), begin, folder)] = name
            self.tell(f"undisturbed: {', '.join(running.values())}")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done[running.pop(future)] = future.result()
        return {name: done[name] for name in by_name if name in done}

    def _record(self, scenario: Scenario, begin: World | None, folder: Path) -> Undisturbed:
        return self._with_a_site(lambda site: self._undisturbed(site, scenario, begin, folder))

    def _undisturbed(self, site: Site, scenario: Scenario, begin: World | None, folder: Path) -> Undisturbed:
        if begin is None:
            site.empty()
        else:
            site.restore(begin)
        if scenario.arrange is not None:
            scenario.arrange(site)
        name = "".join(letter if letter.isalnum() else "-" for letter in scenario.name)
        saved = site.save(folder / f"begin-{name}")
        trace = site.folder / "trace"
        for _ in range(_TRIES):
            site.restore(saved)  # as every kill does: what arranging left behind in the workers must not be told apart
            before = picture(site, self._since)
            words = _words(site, scenario)
            trace.unlink(missing_ok=True)
            ended = site.run(words, {**scenario.environment, "CRASH_TRACE": str(trace)}, busy=scenario.busy)
            if ended.status != ExitStatus.TRY_AGAIN:  # on a machine so busy that a party was silent for seconds
                break
        if ended.status or (unfinished := site.unfinished(scenario.busy)):
            raise ServicectlError(f"{scenario.name}, undisturbed: {unfinished if not ended.status else ended}")
        passed = trace.read_text().splitlines()
        points = () if scenario.at_random_only else boundaries(passed)
        kinds = frozenset(line.partition(" ")[2].partition("/")[0] for line in passed if line.endswith("/claimed"))
        known = Known(points, ended.seconds)
        after = picture(site, self._since)
        return Undisturbed(scenario, saved, before, site.save(folder / f"end-{name}"), after, kinds, known)

    # Killed

    def _is_no_sample(self, undisturbed: Mapping[str, Undisturbed]) -> bool:
        """Whether kills are left once every boundary had one: only then are the longest scenarios worth their time."""
        known = sum(len(undisturbed[one.name].known.boundaries) for one in self._wanted() if one.name in undisturbed)
        at = self.options.at
        return self.options.kills > known if at is None else isinstance(at, AtInstant)

    def _plan(self, undisturbed: Mapping[str, Undisturbed]) -> list[tuple[str, Kill]]:
        options = self.options
        if options.at is None:
            return planned({name: one.known for name, one in undisturbed.items()}, options.kills, options.seed)
        if isinstance(options.at, AtInstant):
            return [(name, options.at) for name in undisturbed]
        found = [name for name, one in undisturbed.items() if options.at in one.known.boundaries]
        if not found:
            raise UsageError(f"no scenario passes the crash point {options.at}", cure="see docs/selftest.md")
        return [(name, options.at) for name in found]

    def _killed(
        self, pool: ThreadPoolExecutor, undisturbed: Mapping[str, Undisturbed], plan: Sequence[tuple[str, Kill]]
    ) -> list[Killed]:
        ended: list[Killed] = []
        running = {pool.submit(self._kill, undisturbed[name], kill) for name, kill in plan}
        while running:
            finished = wait(running, return_when=FIRST_COMPLETED)
            running = finished.not_done
            ended += [future.result() for future in finished.done]
            wrong = sum(bool(one.problems) for one in ended)
            self.tell(f"{len(ended)} of {len(plan)} kills, {wrong} with differences")
        return ended

    def _kill(self, undisturbed: Undisturbed, kill: Kill) -> Killed:
        try:
            return self._with_a_site(lambda site: self._killed_and_resumed(site, undisturbed, kill))
        except ServicectlError as error:
            # The estate of this kill could not be asked: that is no proof of anything, and must not hide the others.
            return Killed(undisturbed.scenario.name, kill, False, 0, (f"could not be compared: {error}",), 0.0)

    def _killed_and_resumed(self, site: Site, undisturbed: Undisturbed, kill: Kill) -> Killed:
        started = time.monotonic()
        scenario = undisturbed.scenario
        planned_for = kill
        for miss in range(_MISSES):
            site.restore(undisturbed.begin)
            words = _words(site, scenario)
            reached, took = self._strike(site, scenario, words, kill)
            if reached or isinstance(planned_for, AtPoint):
                break
            # The machine was slower when the length was measured: the same share of this run's length, and a bit less.
            share = min(1.0, planned_for.milliseconds / 1000 / undisturbed.known.seconds)
            kill = AtInstant(int(took * 1000 * share * 0.8 ** (miss + 1)), planned_for.whole_group)
        problems = [f"after the kill: {told}" for told in broken_pointers(site.place)]
        if scenario.submits and set(site.job_ids()) == set(undisturbed.begin.job_ids):
            # Nobody was told that the job is stored: who asked asks again. Until then nothing may have happened.
            now = picture(site, self._since)
            problems += [f"before anything was stored: {told}" for told in differences(undisturbed.before, now)]
            site.run(words, scenario.environment, busy=scenario.busy)
        resumes = self._resumed(site, scenario)
        problems += [f"{told} after {resumes} resumes" for told in site.unfinished(scenario.busy)]
        problems += broken_pointers(site.place)
        now = picture(site, self._since)
        problems += [str(told) for told in differences(undisturbed.after, now)]
        ended = Killed(scenario.name, kill, reached, resumes, tuple(problems), time.monotonic() - started)
        if problems:
            self._keep(site, ended, undisturbed.after, now)
        return ended

    def _strike(self, site: Site, scenario: Scenario, words: Sequence[str], kill: Kill) -> tuple[bool, float]:
        """Whether the kill hit, and how many seconds the command lived."""
        if isinstance(kill, AtInstant):
            from_outside = forkserver.Kill(kill.milliseconds / 1000, kill.whole_group)
            ended = site.run(words, scenario.environment, kill=from_outside, busy=scenario.busy)
            return ended.status == -signal.SIGKILL, ended.seconds
        trace = site.folder / "trace"
        trace.unlink(missing_ok=True)
        at = {**scenario.environment, "CRASH_AT": kill.name, "CRASH_TRACE": str(trace)}
        # Its status is not asked: a point inside a training child kills that child alone.
        ended = site.run(words, at, busy=scenario.busy)
        return trace.exists() and was_reached(kill, trace.read_text().splitlines()), ended.seconds

    def _resumed(self, site: Site, scenario: Scenario) -> int:
        """Resume like the timer does until everything has ended; how often that was."""
        for resumes in range(_RESUMES):
            if not site.unfinished(scenario.busy):
                return resumes
            site.run(RESUME, scenario.environment, busy=scenario.busy)
        return _RESUMES

    def _keep(self, site: Site, ended: Killed, undisturbed: Picture, now: Picture) -> None:
        with self._keeping:
            if self._first is not None:
                return
            self._first = ended
        folder = self.options.kept
        folder.mkdir(parents=True, exist_ok=True)
        site.keep(folder)
        for name, content in (("undisturbed", undisturbed), ("killed", now)):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
        told = [self._reproduction(ended), *ended.problems]
        (folder / "differences.txt").write_text("\n".join(told) + "\n")

    def _reproduction(self, ended: Killed) -> str:
        words = ["servicectl", "selftest", "crash", "--action", ended.action, "--at", str(ended.kill)]
        if self.options.artifacts:
            words += ["--artifacts", self.options.artifacts]
        return shlex.join(words)


def _words(site: Site, scenario: Scenario) -> tuple[str, ...]:
    return (*scenario.command, *(scenario.before(site) if scenario.before is not None else ()))


def _fast() -> str | None:
    """A folder in memory, where there is one with room: SIGKILL does not lose what was written, on a disk or off it."""
    try:
        room = os.statvfs(_MEMORY)
    except OSError:
        return None
    return str(_MEMORY) if os.access(_MEMORY, os.W_OK) and room.f_bavail * room.f_frsize > _FREE_BYTES else None
