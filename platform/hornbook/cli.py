"""The command line: thin functions over the modules that do the work; nothing heavy is imported before a command runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

INTERRUPTED = 130

app = typer.Typer(
    name="hornbook",
    help="Small language models from data you can vouch for: generate, filter, mix, pretrain, tune, trace.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[
    str, typer.Argument(help="Name of a recipe (see `hornbook recipes`) or path of a YAML file.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: stages.stories.rows=2000")
]


@app.command()
def run(
    recipe: RecipeArgument,
    settings: SetOption = None,
    remake_from: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Make this stage, and all that needs it, anew.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan as a tree and stop.")] = False,
) -> None:
    """Run a recipe; finished artifacts are reused, a killed run goes on where it stood.

    Examples:

        hornbook run demo

        hornbook run demo --dry-run

        hornbook run demo --set stages.stories.rows=2000 --set seed=7

        hornbook run demo --from pretrain
    """
    run_command("run", recipe, settings or [], None, remake_from, dry_run)


@app.command()
def recipes() -> None:
    """List the recipes that can be run by name: those that ship, and `recipes/*.yaml` of this folder.

    Example:

        hornbook recipes
    """
    import yaml

    from hornbook.recipe import recipe_names

    rows = []
    for name, path in recipe_names().items():
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            rows.append([name, "", f"(unreadable) {path}: {' '.join(str(error).split())}"])
            continue
        if not isinstance(value, dict) or not isinstance(value.get("stages"), dict):
            rows.append([name, "", f"(no recipe) {path} is not a mapping with name, seed and stages"])
            continue
        rows.append([name, str(len(value["stages"])), str(value.get("description", ""))])
    _table(["recipe", "stages", "what it makes"], rows)


@app.command()
def stages(kind: Annotated[str | None, typer.Argument(help="Show this kind's inputs and settings.")] = None) -> None:
    """List the kinds of stage, or show one kind's inputs and settings.

    Examples:

        hornbook stages

        hornbook stages stories
    """
    from hornbook.describe import describe_kind, describe_kinds

    if kind is None:
        _table(["kind", "makes", "from", "what it is"], describe_kinds())
    else:
        typer.echo(describe_kind(kind))


@app.command()
def show(
    artifact: Annotated[
        str, typer.Argument(help="Artifact folder or a prefix of it (see `hornbook ls`), or RUN/STAGE.")
    ],
    rows: Annotated[int, typer.Option(min=0, help="How many rows to print.")] = 10,
) -> None:
    """Show an artifact: schema, counts, rejects, rows, lineage.

    Examples:

        hornbook show latest/stories

        hornbook show stories-1f2e --rows 3
    """
    from hornbook.inspection import describe_artifact, find_artifact
    from hornbook.store import open_store

    for line in describe_artifact(find_artifact(open_store(), artifact), rows):
        typer.echo(line)


@app.command()
def label(
    artifact: Annotated[
        str, typer.Argument(help="Artifact of an annotate stage, or a prefix of its folder, or RUN/STAGE.")
    ],
    file: Annotated[Path, typer.Option(help="Where the grades go, one JSON line each; appended to if it is there.")],
    grader: Annotated[
        str | None, typer.Option(help="Who grades; each name grades for itself. Default: your user name.")
    ] = None,
    show_judge: Annotated[
        bool, typer.Option("--show-judge", help="Show the judge's grade once you have given yours.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 is any free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Grade the documents that a judge graded, 0 to 5 with the keyboard, on a page of this machine.

    Every grade is on the disk before the next document comes; the same command goes on where you stopped.

    Examples:

        hornbook label latest/labels --file grades.jsonl

        hornbook label latest/labels --file grades.jsonl --grader anna --show-judge
    """
    from hornbook.inspection import find_artifact
    from hornbook.labelling import FILES, PAGE, Labelling, user_name
    from hornbook.local_page import LocalPage
    from hornbook.store import open_store

    labelling = Labelling(find_artifact(open_store(), artifact), file, grader or user_name(), show_judge)
    for remark in labelling.remarks:
        typer.secho(remark, err=True)
    page = LocalPage(PAGE, FILES, reads=labelling.reads, writes=labelling.writes, port=port)
    state = labelling.state()
    _say(f"{state['graded']} of {state['total']} documents are graded by {labelling.grader}, in {file}")
    page.serve("the labelling page", browser, _say)


@app.command()
def trace(
    what: Annotated[
        str,
        typer.Argument(help="A document's key (or a prefix; see `hornbook show`), or RUN[/STAGE]@STEP:ROW:POSITION."),
    ],
) -> None:
    """Trace a document to its prompt, seeds, model, parents and scores; or a training token to its document.

    Examples:

        hornbook trace 9f86d081884c7d65

        hornbook trace latest@40:3:17
    """
    from hornbook.store import open_store
    from hornbook.trace import trace_document, trace_token

    for line in trace_token(open_store(), what) if "@" in what else trace_document(open_store(), what):
        typer.echo(line)


@app.command()
def fork(
    place: Annotated[str, typer.Argument(metavar="RUN[/STAGE]@STEP", help="A training step that has a checkpoint.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the branch: loop.learning_rate=1e-4"),
    ] = None,
    name: Annotated[str, typer.Option(help="What the branch is called: STAGE-NAME. Default: at-STEP.")] = "",
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Write the recipe into this file, too.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan as a tree and stop.")] = False,
) -> None:
    """Train on from a checkpoint with other settings, beside the run that it came from; both are in one report.

    The run's recipe gets a stage more, with `fork: ARTIFACT@STEP` and the phases that follow. Fork the new run again, and its
    report shows all branches.

    Examples:

        hornbook fork latest@1000 --name web --set 'phases=[{name: decay, steps: 200, weights: {web: 1}}]'

        hornbook fork latest/pretrain@1000 --name slow --set loop.learning_rate=1e-4 --write slow.yaml
    """
    from hornbook.fork import fork as fork_run
    from hornbook.inspection import plan_tree
    from hornbook.one_version import require_one_version
    from hornbook.pipeline import plan_recipe, run_recipe
    from hornbook.recipe import yaml_text
    from hornbook.store import open_store

    require_one_version()
    store = open_store()
    forked = fork_run(store, place, name, settings or [])
    if write is not None:
        write.write_text(yaml_text(dict(forked.recipe.source)), encoding="utf-8")
    if dry_run:
        for line in plan_tree(forked.recipe, plan_recipe(forked.recipe, store, forked.shown)):
            typer.echo(line)
        return
    run_recipe(forked.recipe, store, only=forked.shown, command="fork", say=_say)


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="A model folder or name, an artifact, or RUN/STAGE.")],
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on from, or the user's message where the model chats.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Nucleus sampling mass.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Go on from the text even where the model chats.")] = False,
) -> None:
    """Stream text from a model; chat where it has a template. Without --prompt it reads prompts, a line each.

    Examples:

        hornbook sample latest/export --prompt "Why does ice float?"

        hornbook sample latest/export --plain --prompt "The little dog"

        hornbook sample smollm2-135m-instruct
    """
    from hornbook.sampling import stream
    from hornbook.store import open_store

    for piece in stream(open_store(), model, prompt, max_tokens, temperature, top_p, seed, plain):
        sys.stdout.write(piece)
        sys.stdout.flush()


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A model folder or name, an artifact, or RUN/STAGE.")],
    system: Annotated[str, typer.Option(help="System prompt; it stays when old turns no longer fit.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Nucleus sampling mass.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
) -> None:
    """Talk to a model that has a chat template; it answers word by word and knows what was said. /exit ends.

    Examples:

        hornbook chat latest/export

        hornbook chat latest/export --system "Answer in one sentence." --temperature 0.3
    """
    from hornbook.sampling import load_model, read_lines
    from hornbook.store import open_store
    from hornbook.terminal_chat import HELP, Conversation

    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    def remark(line: str) -> None:
        typer.secho(f"({line})", err=True, dim=True)

    conversation = Conversation(load_model(open_store(), model), system, max_tokens, temperature, top_p, seed)
    remark(f"{conversation.loaded.folder}, {conversation.loaded.context} tokens of context; {HELP}")
    with contextlib.suppress(KeyboardInterrupt):
        conversation.converse(read_lines("you> "), write, remark)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model folder or name, an artifact, or RUN/STAGE.")],
    name: Annotated[str, typer.Option(help="What clients call it; default: the stage's or the folder's name.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    length: Annotated[
        int | None, typer.Option("--context", min=16, help="Longest conversation, in tokens; default: the model's own.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the server's command and stop.")] = False,
) -> None:
    """Serve a model through vLLM's OpenAI server: /v1/chat/completions and its like. Further options go to the server.

    Examples:

        hornbook serve latest/export

        hornbook serve latest/export --name my-model --port 8123 --dry-run

        hornbook serve latest/export --api-key SECRET
    """
    from hornbook.sampling import model_folder
    from hornbook.serving import has_gpu, served_name, server
    from hornbook.store import open_store

    folder = model_folder(open_store(), model)
    found = server(folder, name or served_name(model, folder), host, port, length, not has_gpu(), context.args)
    if dry_run:
        typer.echo(str(found))
        return
    typer.secho(f"serving {folder} at http://{host}:{port}/v1 once it has started; Ctrl-C ends it", err=True)
    found.replace_this_process()


@app.command()
def report(run: Annotated[str, typer.Argument(help="A run's id or a prefix of it, or `latest`.")] = "latest") -> None:
    """Write a run's report page again and print where it lies.

    Example:

        hornbook report latest
    """
    from hornbook.report import write_report
    from hornbook.runs import load_run
    from hornbook.store import open_store

    store = open_store()
    typer.echo(store.describe(write_report(store, load_run(store, run).id)))


@app.command()
def estimate(
    recipe: RecipeArgument,
    seconds: Annotated[float, typer.Option(min=1, help="Time of each stage's pilot, engine starts not counted.")] = 120,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each stage's pilot, at most.")] = 100,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs to give hours for.")] = "1,8,64",
    settings: SetOption = None,
) -> None:
    """Run a small pilot of a recipe's generators; say what all of it will take: tokens, rows, time, money, disk.

    The store is not touched but for the estimate itself, which the run's report shows beside what it came to.

    Examples:

        hornbook estimate demo

        hornbook estimate demo --seconds 60 --rows 200 --gpus 1,4

        hornbook estimate demo --set stages.stories.rows=1000000
    """
    from hornbook.errors import RecipeError
    from hornbook.estimate import estimate as estimate_recipe
    from hornbook.estimate_table import remarks, table
    from hornbook.one_version import require_one_version
    from hornbook.store import open_store

    require_one_version()
    counts = [text.strip() for text in gpus.split(",")]
    if not all(text.isdigit() and int(text) for text in counts):
        raise RecipeError(f"--gpus {gpus!r} is not a list of numbers", "for example --gpus 1,8,64")
    found = estimate_recipe(
        recipe, settings or [], open_store(), rows=rows, seconds=seconds, gpus=[int(text) for text in counts], say=_say
    )
    if lines := table(found):
        _table(["stage", "figure", "estimate", "from", "to"], lines)
    for remark in remarks(found):
        typer.echo(remark)


@app.command()
def preflight(
    recipe: RecipeArgument,
    stage: Annotated[
        list[str] | None, typer.Option(help="A training stage; default: all whose inputs are there.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Say what training will take: time, memory of a worker, checkpoints, the loader; refuse what cannot fit.

    Ten steps are trained on the workers that the stage would have; nothing of them stays.

    Examples:

        hornbook preflight demo

        hornbook preflight demo --stage pretrain --set stages.pretrain.loop.microbatch=32
    """
    from hornbook.cluster import cluster
    from hornbook.one_version import require_one_version
    from hornbook.preflight import preflight as try_recipe
    from hornbook.recipe import load_recipe
    from hornbook.store import open_store

    require_one_version()
    with cluster():
        for name, lines in try_recipe(load_recipe(recipe, settings or []), open_store(), stage or []):
            _table([name, "", ""], [list(line) for line in lines])


@app.command()
def push(
    artifact: Annotated[
        str, typer.Argument(help="Artifact folder or a prefix of it (see `hornbook ls`), or RUN/STAGE.")
    ],
    target: Annotated[str, typer.Argument(help="A folder, an s3:// or gs:// URL, or hf://datasets/OWNER/NAME.")],
    licence: Annotated[
        str, typer.Option("--license", help="The data set's licence, as the hub names it: odc-by, apache-2.0, ...")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Make the hub's repository a private one.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and touch nothing.")] = False,
    rejects: Annotated[
        bool, typer.Option("--rejects", help="Write what was refused, too, as a second configuration.")
    ] = False,
    shard_mib: Annotated[int, typer.Option(min=1, help="Most MiB of parts that become one shard.")] = 256,
) -> None:
    """Publish a corpus as a data set: Parquet shards and a card, to a folder, an object store or the Hugging Face hub.

    A push that was interrupted goes on where it stood; the card comes last.

    Examples:

        hornbook push latest/stories ./stories --license odc-by

        hornbook push latest/stories hf://datasets/OWNER/NAME --private

        hornbook push latest/textbooks ./textbooks --rejects --dry-run
    """
    from hornbook.push import push as push_artifact
    from hornbook.store import open_store

    push_artifact(
        open_store(),
        artifact,
        target,
        licence=licence,
        private=private,
        dry_run=dry_run,
        rejects=rejects,
        shard_bytes=shard_mib << 20,
        say=_say,
        warn=lambda line: typer.secho(line, err=True),
    )


@app.command()
def dial(
    scores: Annotated[str, typer.Argument(help="A scored artifact's folder or a prefix of it, or RUN/STAGE.")],
    into: Annotated[
        str | None, typer.Option("--recipe", help="The recipe to write the threshold into: name or file.")
    ] = None,
    at: Annotated[float | None, typer.Option(help="No page: print what this threshold keeps.")] = None,
    write: Annotated[bool, typer.Option("--write", help="With --at: write it into --recipe.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where the page listens; 0 takes any free port.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the page's address only.")] = False,
) -> None:
    """Turn a score threshold on a page of this machine: what stays of each source, what is lost; write it into a recipe.

    Examples:

        hornbook dial latest/scores

        hornbook dial latest/scores --recipe my.yaml --port 8123 --no-browser

        hornbook dial latest/scores --at 0.6

        hornbook dial latest/scores --recipe my.yaml --at 0.6 --write
    """
    from hornbook.dial_page import Dial, table
    from hornbook.errors import RecipeError
    from hornbook.store import open_store

    if write and (at is None or into is None):
        raise RecipeError("--write needs --at and --recipe", "--recipe my.yaml --at 0.6 --write")
    opened = Dial(open_store(), scores, into, _say)
    if at is None:
        opened.page(port).serve(f"the dial of {opened.stage}", browser=not no_browser, say=_say)
        return
    remarks, sources, total = table(opened.figures, opened.step(at))
    for remark in remarks:
        typer.echo(remark)
    _table(["source", "documents", "kept", "share", "tokens kept", ""], sources + total)
    for line in opened.written_lines(at, write) if into is not None else ():
        typer.echo(line)


@app.command()
def doctor() -> None:
    """Say what this machine has, which engines and models resolve, what is missing and the command that cures it.

    Example:

        hornbook doctor
    """
    from hornbook.doctor import diagnose, healthy, render

    findings = diagnose()
    typer.echo(render(findings))
    raise typer.Exit(0 if healthy(findings) else 1)


@app.command(name="ls")
def list_store() -> None:
    """List the artifacts in the store.

    Example:

        hornbook ls
    """
    from hornbook.inspection import list_artifacts
    from hornbook.store import open_store

    _table(["artifact", "stage", "rows", "rejected", "tokens", "size", "made"], list_artifacts(open_store()))


@app.command()
def status() -> None:
    """List the runs: what is running, what is finished, what died.

    Example:

        hornbook status
    """
    from hornbook.inspection import list_runs
    from hornbook.store import open_store

    _table(["run", "state", "started", "took", "stages", "now"], list_runs(open_store()))


@app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run's id or a prefix of it, or `latest`.")] = "latest",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the run ends.")] = False,
) -> None:
    """Print a run's events.

    Examples:

        hornbook logs latest

        hornbook logs demo-20261121 --follow
    """
    from hornbook.inspection import follow_events
    from hornbook.runs import load_run
    from hornbook.store import open_store

    for line in follow_events(load_run(open_store(), run), follow):
        typer.echo(line)


@app.command()
def gc(
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is listed; without it nothing is touched.")
    ] = False,
    keep: Annotated[int, typer.Option(min=0, help="Keep what the newest N runs of each recipe need.")] = 3,
) -> None:
    """Show which artifacts and runs no kept run needs; with --delete, delete them. Running runs are always kept.

    Examples:

        hornbook gc

        hornbook gc --keep 1 --delete
    """
    from hornbook.garbage import collect, plan_collection
    from hornbook.store import open_store

    store = open_store()
    plan = plan_collection(store, keep)
    _table(["what", "why", "size"], plan.rows())
    typer.echo(plan.summary(delete))
    if delete:
        for name in collect(store, plan):
            typer.echo(f"kept after all: {name}, which a run works at or may need by now")


@app.command()
def submit(
    recipe: RecipeArgument,
    settings: SetOption = None,
    command: Annotated[str, typer.Option(help="run, generate-textbooks or train-phi-style.")] = "run",
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster's dashboard, http://host:8265; default: RAY_API_SERVER_ADDRESS or this machine's."
        ),
    ] = None,
) -> None:
    """Submit a recipe as a Ray job: deterministic id, metadata, one version of the code shipped whole.

    Examples:

        hornbook submit demo

        hornbook submit demo --command generate-textbooks --set stages.stories.rows=100000
    """
    from hornbook.jobs import submit as submit_job

    submitted = submit_job(recipe, settings or [], command=command, address=address)
    typer.echo(submitted)


@app.command()
def stop(run: Annotated[str, typer.Argument(help="A run's id or a prefix of it, or `latest`.")] = "latest") -> None:
    """Ask a run to finish the step it is at, save and exit; the same command goes on later.

    Example:

        hornbook stop latest
    """
    from hornbook.runs import load_run, request_stop
    from hornbook.store import open_store

    found = load_run(open_store(), run)
    request_stop(found)
    typer.echo(f"asked run {found.id} to stop; `hornbook status` shows when it has")


def run_command(
    command: str,
    recipe_name: str,
    settings: list[str],
    group: str | None,
    remake_from: str | None = None,
    dry_run: bool = False,
) -> None:
    """Run a recipe, or only the stages of one group and what they need; shared by the three commands that run."""
    from hornbook.errors import RecipeError
    from hornbook.one_version import require_one_version
    from hornbook.pipeline import plan_recipe, run_recipe
    from hornbook.recipe import load_recipe
    from hornbook.settings import nearest
    from hornbook.store import open_store

    require_one_version()
    recipe = load_recipe(recipe_name, settings)
    only = [name for name, entry in recipe.stages.items() if group in (None, entry.group)]
    if not only:
        raise RecipeError(f"{recipe_name}: no stage of the group {group}", "`hornbook run` runs all of a recipe")
    if remake_from is not None and remake_from not in recipe.stages:
        raise RecipeError(f"--from {remake_from}: no such stage{nearest(remake_from, list(recipe.stages))}")
    store = open_store()
    if dry_run:
        from hornbook.inspection import plan_tree

        for line in plan_tree(recipe, plan_recipe(recipe, store, only, remake_from)):
            typer.echo(line)
        return
    finished = run_recipe(recipe, store, only=only, remake_from=remake_from, command=command, say=_say)
    for name, artifact in finished.artifacts.items():
        if recipe.stages[name].stage.kind == "export":
            typer.echo(f"model: {store.describe(artifact.folder)}/model  (hornbook sample latest/{name})")


def guarded(function: Callable[[], Any]) -> None:
    """Run a command line; print hornbook's own errors as one message with the cure, and leave with their exit code."""
    from hornbook.errors import HornbookError, Stopped

    try:
        function()
    except HornbookError as error:
        typer.secho(f"{'stopped' if isinstance(error, Stopped) else 'error'}: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except SystemExit as left:
        if left.code == INTERRUPTED:  # what typer makes of Ctrl-C, without a word
            typer.secho("interrupted; the same command goes on where it stood", err=True)
        raise
    except BrokenPipeError:  # `hornbook logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def main() -> None:
    """Entry point of the console script `hornbook`."""
    guarded(app)


def _say(line: str) -> None:
    print(line, flush=True)


def _table(header: list[str], rows: list[list[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    wide = None if sys.stdout.isatty() else 200
    Console(width=wide, markup=False, emoji=False, highlight=False).print(table)


if __name__ == "__main__":
    main()
