"""`train-phi-style`: the training stages of a recipe and whatever of their ancestors is missing, as a command and as a Ray job."""

from __future__ import annotations

from typing import Annotated

import typer

from hornbook.cli import SetOption, guarded, run_command


def train(
    recipe: Annotated[str, typer.Option(help="Name of a recipe or path of a YAML file.")],
    settings: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan as a tree and stop.")] = False,
) -> None:
    """Run a recipe's training stages, and whatever of their ancestors is missing.

    Examples:

        train-phi-style --recipe demo --set stages.pretrain.loop.learning_rate=0.001

        ray job submit --runtime-env clusters/runtime_env.yaml -- train-phi-style --recipe demo
    """
    run_command("train-phi-style", recipe, settings or [], "training", dry_run=dry_run)


def main() -> None:
    """Entry point of the console script."""
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command()(train)
    guarded(app)


if __name__ == "__main__":
    main()
