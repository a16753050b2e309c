from __future__ import annotations

from typing import Annotated

import typer

from servicectl.cli.common import epilog, session

app = typer.Typer(help="What drift checks have found over time.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """A group, although it has one command: `servicectl drift history`."""


@app.command(
    "history",
    help="Every check of a model's features, from the table drift_results: a line of the PSI per feature, or each check "
    "of one feature.",
    epilog=epilog("servicectl drift history Coffee_Recommender age"),
)
def history(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model id.")],
    feature: Annotated[str | None, typer.Argument(metavar="[FEATURE]", help="One of its features.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many results of each feature, the newest.")] = 1000,
) -> None:
    from servicectl.cli.drift_views import print_history

    at = session(context)
    with at.working("drift history"):
        found = at.world.registry.drift_results(model, feature, limit)
    at.end({"model_id": model, "results": found}, lambda: print_history(at.screen, found, one_feature=bool(feature)))
