"""`generate-textbooks`: the generator stages of a recipe and what they need, as a command and as a Ray job."""

from __future__ import annotations

from typing import Annotated

import typer

from hornbook.cli import SetOption, guarded, run_command


def generate(
    recipe: Annotated[str, typer.Option(help="Name of a recipe or path of a YAML file.")],
    settings: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan as a tree and stop.")] = False,
) -> None:
    """Run a recipe's generator stages and whatever they need.

    Examples:

        generate-textbooks --recipe demo --set stages.textbooks.rows=16

        ray job submit --runtime-env clusters/runtime_env.yaml -- generate-textbooks --recipe demo
    """
    run_command("generate-textbooks", recipe, settings or [], "generators", dry_run=dry_run)


def main() -> None:
    """Entry point of the console script."""
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command()(generate)
    guarded(app)


if __name__ == "__main__":
    main()
