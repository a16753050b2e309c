"""The measurement over 100,000 jobs leaves no command out."""

from __future__ import annotations

from bench import jobs_scale
from servicectl.cli import jobs


def test_every_command_over_the_job_table_is_measured_or_an_exception_with_a_reason() -> None:
    commands = {f"jobs {command.name}" for command in jobs.app.registered_commands}
    measured = {" ".join(words[:2]) for words in jobs_scale.ARGUMENTS.values()}

    assert len(commands) >= 9
    assert commands - measured - jobs_scale.UNMEASURED.keys() == set()
    assert {"schedules list", "doctor"} <= measured
    assert all(jobs_scale.UNMEASURED.values())


def test_each_figure_but_the_copy_of_the_file_has_the_limit_of_two() -> None:
    figures = {jobs_scale.figure(name) for name in jobs_scale.COMMANDS}

    assert figures - jobs_scale.LIMITS.keys() == {"backup_ratio"}
    assert set(jobs_scale.LIMITS.values()) == {2.0}
