"""hornbook as Ray jobs on a real head node with token authentication, submitted as the README says."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from ray_head import ROOT, RayHead, ray_head

from hornbook.errors import ClusterError, RecipeError, StoreError
from hornbook.jobs import submission_id, submit


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(os.environ["RAY_AUTH_TOKEN"]) as running:
        yield running


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two small stages of the echo engine: the plumbing of a job without a model."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        textwrap.dedent(
            """\
            name: tiny
            seed: 3
            engine: {kind: echo}
            stages:
              stories: {kind: stories, rows: 8}
            """
        )
    )
    return path


def finished(head: RayHead, identifier: str, seconds: float = 120) -> Any:
    """Wait for a job's end and return what the Jobs API says of it."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(head.address)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        info = client.get_job_info(identifier)
        if info.status.is_terminal():
            return info, client.get_job_logs(identifier)
        time.sleep(0.5)
    raise AssertionError(f"{identifier} did not end in {seconds} s:\n{client.get_job_logs(identifier)}")


PROBE = """
import platform, ray, generators, hornbook
from hornbook.one_version import require_one_version

require_one_version()
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
def worker():
    import os, platform, hornbook, generators
    return [platform.system(), os.getcwd(), hornbook.__file__, generators.__file__]

print("DRIVER", platform.system(), hornbook.__file__, generators.__file__)
print("WORKER", *ray.get(worker.remote()))
"""


def test_job_and_its_workers_run_the_one_version_that_was_shipped(head: RayHead) -> None:
    done = head.submit("python", "-c", PROBE)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line[:6] in ("DRIVER", "WORKER")}
    assert lines["DRIVER"][0] == lines["WORKER"][0] == "Linux"  # the standard library's `platform`, not our folder
    shipped = [*lines["DRIVER"][1:], *lines["WORKER"][2:]]
    assert all("runtime_resources" in path for path in shipped), shipped
    assert not any(path.startswith(str(ROOT)) for path in shipped)


def test_no_token_no_entry(head: RayHead) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.address}/api/jobs/", timeout=5)
    assert refused.value.code == 401
    wrong = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {'0' * 64}"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(wrong, timeout=5)
    assert refused.value.code == 403
    done = head.ray(
        *("job", "submit", "--address", head.address, "--", "echo", "entered"), RAY_AUTH_MODE="", RAY_AUTH_TOKEN=""
    )
    assert done.returncode != 0
    assert "entered" not in done.stdout


def test_submit_without_the_token_names_the_cure(head: RayHead, recipe: Path) -> None:
    code = f"from hornbook.jobs import submit\nsubmit({str(recipe)!r}, address={head.address!r})"
    environment = {**head.environment, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    environment.pop("RAY_AUTH_TOKEN")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=recipe.parent, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode != 0
    assert "ClusterError" in done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr


def test_submit_is_deterministic_and_never_starts_the_same_work_twice(
    head: RayHead, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HORNBOOK_STORE", str(head.store))
    monkeypatch.chdir(recipe.parent)
    first = submit(str(recipe), command="generate-textbooks", address=head.address)
    again = submit(str(recipe), command="generate-textbooks", address=head.address)
    assert first.new
    info, log = finished(head, first.id)
    assert info.status == "SUCCEEDED", log
    assert again.id in (first.id, f"{first.id}-2")
    assert again.new is (again.id != first.id)
    assert {name: info.metadata[name] for name in ("recipe", "fingerprint", "command", "hornbook")} == {
        name: first.metadata[name] for name in ("recipe", "fingerprint", "command", "hornbook")
    }
    shown = asked(head, f"/api/jobs/{first.id}")["metadata"]  # what the dashboard's page of the job shows
    assert (shown["recipe"], shown["fingerprint"]) == ("tiny", first.metadata["fingerprint"])
    manifests = [json.loads(path.read_text()) for path in (head.store / "artifacts").rglob("manifest.json")]
    assert [manifest["counts"]["planned"] for manifest in manifests] == [8]

    followed = submit(str(recipe), command="generate-textbooks", address=head.address)
    number = 3 if again.new else 2
    assert (followed.new, followed.id) == (True, f"{first.id}-{number}")
    info, log = finished(head, followed.id)
    assert info.status == "SUCCEEDED", log
    assert "reused" in log


def test_the_id_names_command_recipe_code_and_store() -> None:
    same = submission_id("run", "demo", "f" * 64, "/data")
    assert same == submission_id("run", "demo", "f" * 64, "/data")
    assert same.startswith("run-demo-")
    others = [("train-phi-style", "f" * 64, "/data"), ("run", "e" * 64, "/data"), ("run", "f" * 64, "s3://b/p")]
    assert len({same, *(submission_id(command, "demo", mark, store) for command, mark, store in others)}) == 4


def test_submit_refuses_what_cannot_work_before_it_asks_a_cluster(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HORNBOOK_STORE", raising=False)
    with pytest.raises(StoreError, match="not set"):
        submit(str(recipe))
    monkeypatch.setenv("HORNBOOK_STORE", "some/folder")
    with pytest.raises(StoreError, match="relative"):
        submit(str(recipe))
    monkeypatch.setenv("HORNBOOK_STORE", "s3://key:secret@bucket/prefix")
    with pytest.raises(StoreError, match="credentials"):
        submit(str(recipe))
    monkeypatch.setenv("HORNBOOK_STORE", "/data/hornbook")
    with pytest.raises(RecipeError, match="a job cannot run 'rm'"):
        submit(str(recipe), command="rm")
    with pytest.raises(RecipeError, match="rowz"):
        submit(str(recipe), ["stages.stories.rowz=3"])


def test_submit_where_no_ray_listens_names_the_cure(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_STORE", "/data/hornbook")
    with stranger_on(range(40100, 40200)) as server:  # the port is no status code, though it has a 401 in it
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError) as other:
            submit(str(recipe), address=address)
        server.shutdown()
    assert address in other.value.message
    with pytest.raises(ClusterError, match=address) as nobody:
        submit(str(recipe), address=address)
    assert "--address" in nobody.value.cure


def stranger_on(ports: range) -> http.server.HTTPServer:
    """Return a web server that is not Ray, on the first free port."""
    for port in ports:
        with suppress(OSError):
            return http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler)
    raise AssertionError(f"no free port in {ports}")


# The recipe `demo` small: every stage runs, on few rows, with the engine that needs no model. That one cannot write a
# question with its answer, so those come from an endpoint.
SMALL_DEMO = [
    "engine.kind=echo",
    "stages.export.serving.kind=echo",
    "stages.questions.engine.kind=openai",
    "stages.questions.checks.near_duplicates=false",
    "stages.questions.least_drawn=0",  # the endpoint speaks of ice, whatever it is asked
    "stages.stories.rows=32",
    "stages.textbooks.rows=16",
    "stages.web.files=120",
    "stages.labels.sample=40",
    "stages.quality.trees=20",
    "stages.tokenizer.vocabulary=512",
    "stages.pretrain.phases=[{name: stable, steps: 3}, {name: decay, steps: 1}]",
    "stages.pretrain.model={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, "
    "num_key_value_heads: 2}",
    "stages.pretrain.loop.global_batch=4",
    "stages.pretrain.loop.sequence_length=64",
    "stages.pretrain.loop.validation_rows=2",
    "stages.sft.epochs=0.5",
    "stages.sft.workers=1",
    "stages.scores.workers=1",
    *(f"stages.pack-{source}.workers=1" for source in ("stories", "textbooks", "web", "questions")),
    "stages.export.sampling.max_tokens=8",
]


@contextmanager
def endpoint() -> Iterator[str]:
    """An OpenAI-compatible endpoint that always writes one question and its answer; yields its URL."""
    message = {"role": "assistant", "content": "Question: Why does ice float?\nAnswer: Ice is lighter than the water."}
    reply = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 14},
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def asked(head: RayHead, path: str) -> Any:
    """Return what the dashboard's HTTP API says."""
    headers = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(head.address + path, headers=headers), timeout=30) as reply:
        return json.load(reply)


def exported_metrics(head: RayHead) -> set[str]:
    """Return the names of hornbook's metrics that a Prometheus would read now, with the stage where they have one."""
    with urllib.request.urlopen(f"{head.metrics}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    found = re.findall(r"^ray_(hornbook_\w+)\{([^}]*)\}", text, re.MULTILINE)
    stages = [(name, re.search(r'[{,]?stage="([^"]*)"', tags)) for name, tags in found]
    return {f"{name} {stage.group(1)}" if stage else name for name, stage in stages}


@contextmanager
def watched_metrics(head: RayHead) -> Iterator[set[str]]:
    """Read the metrics once a second, as Prometheus does: a driver's end with it."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            with suppress(OSError):
                seen.update(exported_metrics(head))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_the_demo_runs_as_the_two_jobs_of_the_readme_and_the_dashboard_shows_it(head: RayHead) -> None:
    with watched_metrics(head) as metrics, endpoint() as url:
        changes = [*SMALL_DEMO, f"stages.questions.engine.base_url={url}"]
        settings = [word for change in changes for word in ("--set", change)]
        done = head.submit("generate-textbooks", "--recipe", "demo", *settings)
        assert done.returncode == 0, done.stdout + done.stderr
        done = head.submit("train-phi-style", "--recipe", "demo", *settings)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "textbooks: reused" in done.stdout
    runs = [json.loads(path.read_text()) for path in head.store.glob("runs/demo-*/run.json")]
    assert {run["command"]: run["state"] for run in runs} == {
        "generate-textbooks": "succeeded",
        "train-phi-style": "succeeded",
    }
    trained = next(run for run in runs if run["command"] == "train-phi-style")
    assert {trained["stages"][name]["state"] for name in ("stories", "textbooks", "questions")} == {"reused"}
    jobs = [job for job in asked(head, "/api/jobs/") if "--recipe demo" in job["entrypoint"]]
    assert {job["status"] for job in jobs} == {"SUCCEEDED"}
    datasets = [
        found["dataset"] for job in jobs for found in asked(head, f"/api/data/datasets/{job['job_id']}")["datasets"]
    ]
    for stage in ("stories", "textbooks", "questions", "web", "labels", "scores", "pack-web"):
        assert any(name.startswith(f"{stage}_") for name in datasets), datasets
    training = [job["job_id"] for job in jobs if "train-phi-style" in job["entrypoint"]]
    train_runs = [run for run in asked(head, "/api/train/v2/runs/v1")["train_runs"] if run["job_id"] in training]
    assert {run["status"] for run in train_runs} == {"FINISHED"}, train_runs
    assert [sum(stage in run["name"] for run in train_runs) for stage in ("pretrain", "sft")] == [1, 1], train_runs
    assert {"hornbook_stage_done stories", "hornbook_stage_planned web", "hornbook_tokens_total"} <= metrics, metrics
    traced = head.hornbook("trace", f"{trained['run']}@2:1:5")
    assert traced.returncode == 0, traced.stderr
    assert "step 2, row 1, position 5" in traced.stdout
    assert "document " in traced.stdout
    assert "artifact artifacts/" in traced.stdout
    for place, said in (("2:1", "is not RUN@STEP:ROW:POSITION"), ("99:0:0", "step 99")):
        refused = head.hornbook("trace", f"{trained['run']}@{place}")
        assert (refused.returncode, said in refused.stderr, "Traceback" in refused.stderr) == (1, True, False), refused
