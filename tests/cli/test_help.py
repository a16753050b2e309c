"""Every command teaches: what it does, an example, its exit statuses; and the documentation knows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from servicectl.cli.app import app
from servicectl.errors import ExitStatus
from tests.parts import ROOT


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf of the command tree. Any: typer's groups are click's, or its own copy of them."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from commands(child, (*path, name))


TREE = typer.main.get_command(app)
LEAVES = {" ".join(path): leaf for path, leaf in commands(TREE)}


def helped(leaf: Any, path: str) -> str:
    context = leaf.context_class(leaf, info_name=f"servicectl {path}", max_content_width=100, terminal_width=100)
    return str(leaf.get_help(context))


def test_these_are_the_commands() -> None:
    assert set(LEAVES) == {
        "sync-production", "drift-check", "retrain", "publish", "listen", "doctor", "init", "demo", "rollback", "approve",
        "models history", "models at", "artifacts adopt", "artifacts prune", "trust init", "jobs list", "jobs show", "jobs resume", "jobs cancel", "jobs retry", "jobs prune", "jobs watch", "jobs backup", "jobs restore",
        "alarms list", "alarms ack", "drift history", "schedules list", "schedules show", "selftest crash",
    }  # fmt: skip


@pytest.mark.parametrize("path", LEAVES)
def test_a_commands_help_has_an_example_of_itself_and_its_exit_statuses(path: str) -> None:
    text = helped(LEAVES[path], path)
    lines = [line.strip() for line in text.splitlines()]
    example = lines[lines.index("EXAMPLE") + 1]
    assert example.startswith(f"servicectl {path}")
    statuses = lines[lines.index("EXIT STATUS") + 1 :]
    told = {int(found[1]) for line in statuses if (found := re.match(r"(\d+) +\S", line))}
    assert {0, 1, 2, 75, 78} <= told <= set(ExitStatus)
    assert "--json" in text


@pytest.mark.parametrize("path", LEAVES)
def test_every_option_and_argument_of_a_command_is_explained(path: str) -> None:
    leaf = LEAVES[path]
    context = leaf.context_class(leaf, info_name=path)
    unexplained = [
        parameter.name
        for parameter in leaf.params
        if parameter.param_type_name == "option" and not parameter.hidden and not getattr(parameter, "help", None)
    ]
    assert unexplained == []
    assert leaf.get_short_help_str() or context


@pytest.mark.parametrize("path", LEAVES)
def test_the_documentation_mentions_every_command(path: str) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = " ".join(page.read_text() for page in pages)
    group, _, verb = path.rpartition(" ")
    mentioned = path in text or (group and re.search(rf"`{group} \w+`.*`{verb}`", text) is not None)
    assert mentioned


def test_every_exit_status_that_a_help_tells_is_documented() -> None:
    page = (ROOT / "docs/json.md").read_text()
    told = {
        int(number)
        for path, leaf in LEAVES.items()
        for number in re.findall(r"^ *(\d+) +\S", helped(leaf, path), re.MULTILINE)
    }
    assert {0, 1, 2, 3, 10, 11, 75, 78} <= told
    assert [status for status in told if not re.search(rf"^\| {status} \|", page, re.MULTILINE)] == []
