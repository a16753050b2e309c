"""The entry point: the only place where an error becomes a message and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from servicectl.errors import ExitStatus, ServicectlError, UsageError

_GLOBAL_FLAGS = {"--json", "-q", "--quiet", "-v", "--verbose"}
_GLOBAL_OPTIONS = {"--config"}


def run() -> None:
    """The command `servicectl`: `main` in a process of its own."""
    from servicectl.leave import leave

    try:
        main()
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        leave(ended.code or 0)
    leave(0)


def main() -> None:
    """One command in this process; most end in SystemExit."""
    arguments = hoisted(sys.argv[1:])
    try:
        if not short_way(arguments):
            parsed(arguments, as_json="--json" in arguments)
    except ServicectlError as error:
        tell(error, as_json="--json" in arguments)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ExitStatus.OK)


def parsed(arguments: Sequence[str], *, as_json: bool) -> NoReturn:
    """Let the parser find the command and run it."""
    from typer import BadParameter

    from servicectl.cli.app import app

    if not as_json:
        app(arguments, prog_name="servicectl")
        raise AssertionError("the parser ends the process")
    usage: Any = BadParameter.__base__  # every error of usage: the parser has no public name for them
    try:
        sys.exit(app(arguments, prog_name="servicectl", standalone_mode=False))
    except usage as wrong:
        tell(UsageError(wrong.format_message().splitlines()[0], cure=_help_of(wrong)), as_json=True)
        sys.exit(ExitStatus.USAGE)


def _help_of(wrong: Any) -> str:
    return f"{wrong.ctx.command_path if wrong.ctx else 'servicectl'} --help"


def short_way(arguments: Sequence[str]) -> bool:
    """Run `jobs resume` and `jobs list`, when they stand without options of their own, without building the parser.

    The resume timer starts one every five minutes, and the parser costs as much as opening the job store.
    """
    if list(arguments[-2:]) not in (["jobs", "resume"], ["jobs", "list"]):
        return False
    before = list(arguments[:-2])
    config = before.pop(before.index("--config") + 1) if "--config" in before[:-1] else None
    if not set(before) <= _GLOBAL_FLAGS | {"--config"} or before.count("--config") > 1:
        return False
    from servicectl.cli import job_commands
    from servicectl.cli.session import Session, set_verbosity

    flags = set(before)
    set_verbosity(quiet=bool(flags & {"-q", "--quiet"}), verbose=bool(flags & {"-v", "--verbose"}))
    at = Session(config, as_json="--json" in flags)
    if arguments[-1] == "resume":
        job_commands.resume(at)
    job_commands.list_jobs(at)
    return True


def hoisted(arguments: Sequence[str]) -> list[str]:
    """Global options may stand anywhere: `servicectl jobs list --json` is `servicectl --json jobs list`."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in _GLOBAL_FLAGS or word.startswith("--config="):
            front.append(word)
        elif word in _GLOBAL_OPTIONS:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return front + rest


def tell(error: ServicectlError, *, as_json: bool) -> None:
    if as_json:
        import json

        told = {"error": error.message, "cure": error.cure, "exit_status": int(error.exit_status)}
        print(json.dumps(told), file=sys.stderr)
        return
    from servicectl import log

    log.error(f"servicectl: {error.message}")
    if error.cure:
        log.error(f"  next: {error.cure}")


if __name__ == "__main__":
    run()
