from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

app = typer.Typer(help="The artifact store.", no_args_is_help=True, rich_markup_mode=None)

ADOPT = """Take a model from before servicectl into its care: record the digest of what is served now.

Its bytes are copied under their registry version and hashed, never unpickled. From then on the model can be verified,
compared with challengers and gone back to."""


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


@app.callback()
def artifacts() -> None:
    """Kept as a group: more verbs belong here."""
