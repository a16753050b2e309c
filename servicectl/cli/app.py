"""The command tree."""

from __future__ import annotations

from typing import Annotated

import typer

from servicectl import __version__
from servicectl.cli import (
    alarms,
    artifacts,
    demo,
    doctor,
    drift_check,
    drift_history,
    init,
    jobs,
    listen,
    models,
    publish,
    retrain,
    rollback,
    schedules,
    selftest,
    sync_production,
    trust,
)
from servicectl.cli.session import Session, set_verbosity

app = typer.Typer(
    name="servicectl",
    help="certbot for ML models: notices drift, retrains, proves the new model better, publishes it safely.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `servicectl demo`, then `servicectl init` and `servicectl doctor`. docs/ has a page for each part.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"servicectl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="The configuration to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only errors and alarms.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Every step as a line on stderr.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    set_verbosity(quiet=quiet, verbose=verbose)
    context.obj = Session(config, as_json=as_json)


for module in (sync_production, drift_check, retrain, publish, listen, doctor, init, rollback, demo):
    module.register(app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(alarms.app, name="alarms")
app.add_typer(drift_history.app, name="drift")
app.add_typer(trust.app, name="trust")
app.add_typer(models.app, name="models")
app.add_typer(schedules.app, name="schedules")
app.add_typer(selftest.app, name="selftest")
