from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from servicectl.cli.common import epilog, lines, session

app = typer.Typer(help="The artifact store.", no_args_is_help=True, rich_markup_mode=None)

ADOPT = """Take a model from before servicectl into its care: record the digest of what is served now.

Its bytes are copied under their registry version and hashed, never unpickled. From then on the model can be verified,
compared with challengers and gone back to."""


PRUNE = """Delete uploads that never came into production, and what killed writers left behind.

Nothing goes that a pointer, the history, the registry or an unfinished job refers to; look first with --dry-run."""


@app.command("adopt", help=ADOPT, epilog=epilog("servicectl artifacts adopt Loan_Approve"))
def adopt(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    version: Annotated[str | None, typer.Option(help="The registry version, if several claim production.")] = None,
) -> None:
    from servicectl.actions import adopt as action
    from servicectl.cli.outcome import end_with

    at = session(context)
    with at.working(f"adopt {model}"):
        ran = action.start(at.world, model, version=version)
    end_with(at, ran)


@app.command("prune", help=PRUNE, epilog=epilog("servicectl artifacts prune --days 30 --dry-run"))
def prune(
    context: typer.Context,
    days: Annotated[int, typer.Option(min=0, help="Keep what is younger than this.")] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, delete nothing.")] = False,
) -> None:
    from datetime import timedelta

    from servicectl.actions.prune_artifacts import prune as action

    at = session(context)
    with at.working("prune"):
        swept = action(at.world, at.world.clock.now() - timedelta(days=days), dry_run=dry_run)
    verb = "would delete" if dry_run else "deleted"
    gone = [f"{verb} {name}" for name in (*swept.blobs, *swept.temporaries)]
    left = [f"{model}: busy, left alone" for model in swept.busy]
    at.end(msgspec.to_builtins(swept), lines([*gone, *left, f"{verb} {len(gone)} file(s), {swept.bytes / 1e6:.1f} MB"]))


@app.callback()
def artifacts() -> None:
    """A callback keeps this a group."""
