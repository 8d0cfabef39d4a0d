"""hornbook as Ray jobs on a real head node with token authentication, submitted as the README says."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
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


TRAINING = """\
name: job
seed: 3
engine: {kind: echo}
stages:
  stories: {kind: stories, rows: 64, sampling: {max_tokens: 64}}
  tokenizer: {kind: tokenizer, inputs: {documents: stories}, vocabulary: 512}
  packed: {kind: pack, inputs: {documents: stories, tokenizer: tokenizer}, validation_share: 0.1}
  pretrain:
    kind: pretrain
    inputs: {tokens: packed, tokenizer: tokenizer}
    phases: [{name: stable, steps: 4}]
    max_epochs: 1000
    workers: 2
    model: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2}
    loop: {global_batch: 4, sequence_length: 32, validate_every: 4, validation_rows: 2, checkpoint_every: 2}
"""


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
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError) as other:
            submit(str(recipe), address=address)
        server.shutdown()
    assert address in other.value.message
    with pytest.raises(ClusterError, match=address) as nobody:
        submit(str(recipe), address=address)
    assert "--address" in nobody.value.cure


@pytest.mark.slow
def test_the_two_commands_run_as_the_readme_says(head: RayHead, tmp_path: Path) -> None:
    """`generate-textbooks`, then `train-phi-style` on what it left: Ray Data and Ray Train inside submitted jobs."""
    recipe = tmp_path / "job.yaml"
    recipe.write_text(TRAINING)
    done = head.submit("generate-textbooks", "--recipe", str(recipe), "--set", "stages.stories.rows=48")
    assert done.returncode == 0, done.stdout + done.stderr
    done = head.submit("train-phi-style", "--recipe", str(recipe), "--set", "stages.stories.rows=48")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stories: reused" in done.stdout
    runs = [json.loads(path.read_text()) for path in head.store.glob("runs/job-*/run.json")]
    [run] = [run for run in runs if run["command"] == "train-phi-style"]
    assert run["state"] == "succeeded"
    assert {name: stage["state"] for name, stage in run["stages"].items()} == {
        "stories": "reused",
        "tokenizer": "made",
        "packed": "made",
        "pretrain": "made",
    }


@pytest.mark.slow
def test_the_demos_generators_run_as_a_job(head: RayHead) -> None:
    """The README's line on the recipe `demo`, with the engine that needs no model; test_engines has the real one."""
    small = [f"--set=stages.{stage}.rows=16" for stage in ("stories", "textbooks")]
    done = head.submit("generate-textbooks", "--recipe", "demo", "--set", "engine.kind=echo", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [json.loads(path.read_text()) for path in head.store.glob("runs/demo-*/run.json")]
    assert [(run["command"], run["state"]) for run in runs] == [("generate-textbooks", "succeeded")]
    assert {"stories", "textbooks", "questions"} <= set(runs[0]["stages"])
