"""The pipeline's promises: what exists is reused, what changed is remade and nothing else, no planned unit is lost."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from hornbook.artifact import Artifact
from hornbook.cli import guarded
from hornbook.cluster import Resources
from hornbook.engines.interface import EngineSettings
from hornbook.errors import ClusterError, EngineError, HornbookError, ModelError, Stopped, StoreError
from hornbook.events import read_events
from hornbook.garbage import collect, plan_collection
from hornbook.inspection import plan_tree
from hornbook.lock import Holder, hold, read_holder
from hornbook.pipeline import Finished, _Engines, plan_recipe, run_recipe
from hornbook.recipe import Recipe, check_recipe
from hornbook.runs import load_run, request_stop, run_ids
from hornbook.store import Store
from hornbook.trace import trace_document

# The echo engine writes no "Question: ... Answer: ...", so every question is rejected: rejects must add up too.
SOURCE: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "engine": {"kind": "echo"},
    "stages": {
        "stories": {"kind": "stories", "rows": 24, "part_rows": 8},
        "textbooks": {"kind": "textbooks", "rows": 10, "part_rows": 4},
        "questions": {"kind": "questions", "part_rows": 8, "inputs": {"documents": "textbooks"}},
    },
}


def recipe(**settings: Any) -> Recipe:
    """The recipe with settings changed: `stories__rows=30`; `seed` and `engine__...` are the recipe's own."""
    source = copy.deepcopy(SOURCE)
    for name, value in settings.items():
        first, *rest = name.split("__")
        target = source if first in ("seed", "engine") else source["stages"]
        *parents, last = [first, *rest]
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return check_recipe(source, "test recipe")


def run(store: Store, wanted: Recipe, **options: Any) -> Finished:
    return run_recipe(wanted, store, **{"say": lambda line: None, **options})


def states(finished: Finished) -> dict[str, str]:
    return {name: stage["state"] for name, stage in finished.run.value["stages"].items()}


def digests(finished: Finished) -> dict[str, str]:
    return {name: artifact.manifest.digest for name, artifact in finished.artifacts.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Store, Finished]:
    """A store in which the recipe has run; tests may add to it."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    return store, run(store, recipe())


def test_every_manifest_accounts_for_every_planned_unit(made: tuple[Store, Finished]) -> None:
    _, finished = made
    counts = {name: artifact.manifest.counts for name, artifact in finished.artifacts.items()}
    assert [counts[name]["planned"] for name in SOURCE["stages"]] == [24, 10, 20]
    for name, artifact in finished.artifacts.items():
        manifest = artifact.manifest
        assert manifest.counts["planned"] == manifest.counts["succeeded"] + manifest.counts["rejected"], name
        assert manifest.counts["rejected"] == sum(manifest.reasons.values())
        rows = [identifier >> 16 for table in artifact.tables(columns=["id"]) for identifier in table["id"].to_pylist()]
        rejects = [identifier for table in artifact.tables("rejects") for identifier in table["id"].to_pylist()]
        assert sorted(rows + rejects) == list(range(int(manifest.counts["planned"]))), name
    assert counts["questions"]["rejected"] == 20
    assert set(finished.artifacts["questions"].manifest.reasons) == {"unparsable"}


def test_what_exists_is_reused_without_ray(made: tuple[Store, Finished], tmp_path: Path) -> None:
    store, first = made
    again = run(store, recipe())
    assert states(again) == dict.fromkeys(SOURCE["stages"], "reused")
    assert digests(again) == digests(first)
    program = f"""
import sys
from hornbook.store import Store
from hornbook.recipe import check_recipe
from hornbook.pipeline import run_recipe
finished = run_recipe(check_recipe({SOURCE!r}, "test"), Store({store.url!r}))
assert all(stage["state"] == "reused" for stage in finished.run.value["stages"].values())
assert not {{"ray", "torch", "vllm", "transformers"}} & set(sys.modules), "heavy modules loaded to reuse"
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)


@pytest.mark.parametrize(
    ("settings", "remade"),
    [
        ({"stories__rows": 25}, {"stories"}),
        ({"stories__openings": ["Begin with a bird."]}, {"stories"}),
        ({"textbooks__words": 60}, {"textbooks", "questions"}),
        ({"questions__per_document": 1}, {"questions"}),
        ({"engine__model": "another-name"}, {"stories", "textbooks", "questions"}),
        ({"seed": 4}, {"stories", "textbooks", "questions"}),
    ],
)
def test_a_change_remakes_what_depends_on_it(
    made: tuple[Store, Finished], settings: dict[str, Any], remade: set[str]
) -> None:
    store, _ = made
    wanted = recipe(**settings)
    planned = plan_recipe(wanted, store)
    assert {name for name, plan in planned.items() if not plan.complete} == remade
    lines = list(plan_tree(wanted, planned))
    assert lines[0] == f"small: 3 stages, {len(remade)} to make, {3 - len(remade)} reused"
    assert all((f"{name} [{'make' if name in remade else 'exists'}]" in "\n".join(lines)) for name in SOURCE["stages"])


def test_the_plan_is_what_then_happens(made: tuple[Store, Finished]) -> None:
    store, _ = made
    wanted = recipe(textbooks__words=70)
    before = plan_recipe(wanted, store)
    assert before["questions"].artifact is None  # its fingerprint needs the textbooks' digest
    assert before["questions"].expected.planned == 20
    finished = run(store, wanted)
    assert states(finished) == {"stories": "reused", "textbooks": "made", "questions": "made"}
    after = plan_recipe(wanted, store)
    assert all(plan.complete for plan in after.values())
    assert before["textbooks"].artifact is not None
    assert before["textbooks"].artifact.folder == finished.artifacts["textbooks"].folder


@pytest.mark.parametrize(
    "settings",
    [
        {"engine__replicas": 2, "engine__max_num_seqs": 3},
        {"stories__parts_in_flight": 1},
        {"engine__echo_tokens_per_second": 1e6},
        {"textbooks__engine": {"max_restarts": 2}},
    ],
)
def test_settings_of_speed_remake_nothing(made: tuple[Store, Finished], settings: dict[str, Any]) -> None:
    store, _ = made
    assert all(plan.complete for plan in plan_recipe(recipe(**settings), store).values())


def test_neither_workers_nor_order_change_what_comes_out(made: tuple[Store, Finished], tmp_path: Path) -> None:
    _, first = made
    alone = run(Store(str(tmp_path / "alone")), recipe(stories__parts_in_flight=1, textbooks__parts_in_flight=1))
    many = run(Store(str(tmp_path / "many")), recipe(engine__replicas=2, stories__parts_in_flight=9))
    assert digests(alone) == digests(many) == digests(first)


def test_from_makes_a_stage_and_its_descendants_anew(made: tuple[Store, Finished]) -> None:
    store, _ = made
    again = run(store, recipe(), remake_from="textbooks")
    assert states(again) == {"stories": "reused", "textbooks": "made", "questions": "made"}


def test_only_the_asked_stages_and_what_they_need_run(ray_cluster: None, tmp_path: Path) -> None:
    finished = run(Store(str(tmp_path)), recipe(), only=["questions"])
    assert list(finished.artifacts) == ["textbooks", "questions"]


def test_a_stopped_run_keeps_what_is_finished_and_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    wanted = recipe(
        stories__rows=60, stories__part_rows=2, stories__parts_in_flight=2, engine__echo_tokens_per_second=90
    )
    with stopper(store, when=lambda: committed(store) >= 3) as stopped, pytest.raises(Stopped, match="stories"):
        run(store, wanted)
    assert stopped.record.value["state"] == "running"  # as it was when it was asked
    assert load_run(store, stopped.record.id).state() == "stopped"
    assert load_run(store, stopped.record.id).value["stages"]["stories"]["state"] == "stopped"
    told = [event["event"] for event in read_events(store, stopped.record.folder)]
    assert "stage-stopped" in told and "stopped" in told and not {"failed", "stage-failed"} & set(told)
    assert (
        '<span class="state stopped">stopped</span></td>' in store.read(f"{stopped.record.folder}/report.html").decode()
    )
    kept = committed(store)
    assert 3 <= kept < 30
    finished = run(store, recipe(stories__rows=60, stories__part_rows=2))
    (parts,) = [event for event in events(store, finished, "parts") if event["stage"] == "stories"]
    assert parts["done"] >= 2 * kept
    assert finished.artifacts["stories"].manifest.counts["planned"] == 60
    with pytest.raises(HornbookError, match="is succeeded, not running"):
        request_stop(finished.run)


def test_an_interrupted_run_is_stopped_not_failed(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    monkeypatch.setattr("hornbook.pipeline.finish_artifact", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(store, recipe(), only=["stories"])
    record = load_run(store, "latest")
    assert (record.state(), record.value["stages"]["stories"]["state"]) == ("stopped", "stopped")


def test_a_stopped_run_leaves_with_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        raise Stopped("stories was stopped", "run it again")

    with pytest.raises(SystemExit) as caught:
        guarded(stopped)
    assert caught.value.code == 3  # with 0 a Ray job would show as SUCCEEDED
    assert capsys.readouterr().err.startswith("stopped: stories was stopped")


def test_ctrl_c_says_that_the_same_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.Typer()

    @command.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        guarded(lambda: command([]))
    assert left.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_a_run_that_lost_its_lock_finishes_nothing(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hornbook.lock.BEAT_SECONDS", 0.1)
    store = Store(str(tmp_path))
    slow = recipe(stories__rows=60, stories__part_rows=2, stories__parts_in_flight=2, engine__echo_tokens_per_second=90)

    def steal() -> None:
        wait_for(lambda: committed(store) >= 1)
        (name,) = store.names("artifacts")
        store.write_json(f"locks/{name}.json", {**vars(Holder.here("the-thief")), "host": "elsewhere"})

    thief = threading.Thread(target=steal)
    thief.start()
    with pytest.raises(StoreError, match="was taken from this run"):
        run(store, slow, only=["stories"])
    thief.join()
    (name,) = store.names("artifacts")
    assert not Artifact(store, f"artifacts/{name}").complete
    assert committed(store) < 30, "it went on to the end"
    assert read_holder(store, f"locks/{name}.json") is not None
    record = load_run(store, "latest")
    assert record.value["stages"]["stories"]["state"] == "failed"
    assert "lock-lost" in [event["event"] for event in read_events(store, record.folder)]


@pytest.fixture
def closed_engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the models of the engines that were closed; engines are not real, since no test machine has their GPUs."""
    closed: list[str] = []

    class Pool:
        def __init__(self, settings: EngineSettings) -> None:
            self.settings = settings

        def handle(self, wait: bool = True) -> str:
            return self.settings.model

        def close(self) -> None:
            closed.append(self.settings.model)

    monkeypatch.setattr("hornbook.engines.pool.EnginePool", Pool)
    return closed


@pytest.mark.parametrize(("gpus", "closed"), [(0, []), (2, ["writer"])])
def test_a_stage_without_an_engine_finds_the_gpus_free(
    monkeypatch: pytest.MonkeyPatch, closed_engines: list[str], gpus: float, closed: list[str]
) -> None:
    monkeypatch.setattr("hornbook.pipeline.resources", lambda: Resources(1, 4, gpus))
    writer, echo = EngineSettings(kind="vllm", model="writer"), EngineSettings(kind="echo", model="echo")
    engines = _Engines()
    engines.open(writer)
    engines.open(echo)
    engines.make_room("stories", SimpleNamespace(engine=writer))
    assert closed_engines == []
    engines.make_room("tokenizer", SimpleNamespace(rows=3))
    assert closed_engines == closed
    engines.keep_only([])
    assert sorted(closed_engines) == ["echo", "writer"]


@pytest.mark.parametrize(("gpus", "closed"), [(2.0, ["smollm2-135m-instruct"]), (0.0, [])])
def test_a_model_of_the_recipe_finds_the_gpus_that_the_engine_in_its_place_had(
    monkeypatch: pytest.MonkeyPatch, closed_engines: list[str], gpus: float, closed: list[str]
) -> None:
    monkeypatch.setattr("hornbook.pipeline.resources", lambda: Resources(1, 4, gpus))
    writer = EngineSettings(kind="vllm")
    engines = _Engines()
    engines.open(writer)
    engines.make_room("pairs", SimpleNamespace(engine=writer))
    assert engines.open(EngineSettings(kind="vllm", model="/models/sft")) == "/models/sft"
    assert closed_engines == closed
    both = SimpleNamespace(engine=writer, judge=EngineSettings(kind="vllm", model="/models/judge"))
    if gpus:
        with pytest.raises(ClusterError, match=r"stages.pairs has 2 vllm engines") as caught:
            engines.make_room("pairs", both)
        assert "engine.replicas, judge.replicas" in caught.value.cure
    else:
        engines.make_room("pairs", both)


def test_a_failed_run_says_why_and_has_a_report(ray_cluster: None, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    broken = recipe(textbooks__engine={"echo_dies_on": "textbook", "max_restarts": 0})
    with pytest.raises(EngineError, match="textbooks: the engine keeps dying"):
        run(store, broken)
    (name,) = run_ids(store)
    record = load_run(store, name)
    assert record.state() == "failed"
    assert "keeps dying" in record.value["error"]
    assert {stage: value["state"] for stage, value in record.value["stages"].items()} == {
        "stories": "made",
        "textbooks": "failed",
        "questions": "pending",
    }
    assert "keeps dying" in store.read(f"{record.folder}/report.html").decode()


def test_an_unknown_model_is_said_before_anything_runs(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ModelError, match="smolm2"):
        run(store, recipe(questions__engine={"kind": "vllm", "model": "smolm2-135m-instruct"}))
    assert run_ids(store) == []


def test_a_second_driver_waits_and_then_reuses(made: tuple[Store, Finished]) -> None:
    store, _ = made
    wanted = recipe(stories__rows=26)
    artifact = plan_recipe(wanted, store, ["stories"])["stories"].artifact
    assert artifact is not None
    said: list[str] = []
    with hold(store, f"locks/{Path(artifact.folder).name}.json", "the-first-run", said.append):
        second = threading.Thread(target=run, args=(store, wanted), kwargs={"only": ["stories"], "say": said.append})
        second.start()
        wait_for(lambda: any("the-first-run" in line for line in said))
        assert not artifact.complete
        donor = run(Store(f"{store.url}/elsewhere"), wanted, only=["stories"]).artifacts["stories"]
        for name, _ in donor.store.files(donor.folder):  # the first driver finishes
            if name != "manifest.json":
                store.write(f"{artifact.folder}/{name}", donor.store.read(f"{donor.folder}/{name}"))
        store.write(f"{artifact.folder}/manifest.json", donor.store.read(f"{donor.folder}/manifest.json"))
    second.join(60)
    assert not second.is_alive()
    newest = load_run(store, "latest")
    assert newest.state() == "succeeded"
    assert newest.value["stages"]["stories"]["state"] == "reused"


def test_gc_keeps_what_kept_runs_need(ray_cluster: None, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    old = run(store, recipe(), only=["stories"])
    new = run(store, recipe(stories__rows=30), only=["stories"])
    assert {name for name, _, _ in plan_collection(store, keep=2).garbage} == set()
    plan = plan_collection(store, keep=1)
    assert {name for name, _, _ in plan.garbage} == {old.run.folder, old.artifacts["stories"].folder}
    collect(store, plan)
    assert run_ids(store) == [new.run.id]
    assert states(run(store, recipe(stories__rows=30), only=["stories"])) == {"stories": "reused"}
    assert not Artifact(store, old.artifacts["stories"].folder).complete


# --- the stage around the tests -----------------------------------------------------------------------------------------


def committed(store: Store) -> int:
    """Drafts of stories that are committed in any artifact of the store."""
    return sum(
        len(store.names(f"artifacts/{name}/drafts/parts")) for name in store.names("artifacts") if "stories" in name
    )


def events(store: Store, finished: Finished, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(store, finished.run.folder) if event["event"] == kind]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_an_object_store_is_as_good_as_a_disk(made: tuple[Store, Finished], s3_url: str) -> None:
    store = Store(s3_url.replace("STORE", "pipeline"))
    first = run(store, recipe())
    assert digests(first) == digests(made[1])
    assert set(states(run(store, recipe())).values()) == {"reused"}
    story = next(first.artifacts["stories"].tables()).to_pylist()[0]
    assert any("prompt" in line for line in trace_document(store, story["key"].hex()))
    assert [event["event"] for event in read_events(store, first.run.folder)][-1] == "end"
    assert store.exists(f"{first.run.folder}/report.html")


class stopper:
    """Asks the newest run to stop as soon as a condition holds, as `hornbook stop latest` in another terminal would."""

    def __init__(self, store: Store, when: Any) -> None:
        self.store, self.when = store, when
        self.thread = threading.Thread(target=self.work)

    def work(self) -> None:
        wait_for(self.when)
        self.record = load_run(self.store, "latest")
        request_stop(self.record)

    def __enter__(self) -> stopper:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.join()
