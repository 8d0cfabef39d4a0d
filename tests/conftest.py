"""What the tests share: one Ray cluster for the whole session and a clean machine-local cache."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import browser_page, chromium  # noqa: F401 - fixtures
from hypothesis import settings

if TYPE_CHECKING:
    from hornbook.artifact import Artifact
    from hornbook.stage import Stage, StageContext

ROOT = Path(__file__).resolve().parent.parent

# Ray's workers must find the packages whether or not the distribution is installed, and the test modules whose classes
# they run; they authenticate with a token of this session alone. All of it is read when Ray starts.
IMPORT_ROOTS = [ROOT / "platform", ROOT, *sorted(path for path in (ROOT / "tests").iterdir() if path.is_dir())]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*map(str, IMPORT_ROOTS), os.environ.get("PYTHONPATH", "")]))
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so; hornbook runs its workers at it
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


# A law holds however long an example takes: on a busy machine any may take longer than Hypothesis allows.
settings.register_profile("hornbook", deadline=None)
settings.load_profile("hornbook")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray with four logical CPUs, whatever the machine has, so that actors and tasks never wait for each
    other."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace="tests",
    )
    yield
    ray.shutdown()


@pytest.fixture
def stage_context(tmp_path: Path) -> Iterator[StageContexts]:
    """Builds a StageContext around a stage, on a store in a temporary folder; engines are shared and closed at the end.

    `stage_context(stage, documents=[artifact])` gives the context that `stage.run` wants;
    `stage_context.finished(stage, documents=[artifact])` runs the stage and returns its finished artifact. The same stage
    name means the same artifact folder, so a second call resumes.
    """
    contexts = StageContexts(tmp_path)
    yield contexts
    contexts.close()


@pytest.fixture(scope="module")
def shared_stage_context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageContexts]:
    """As `stage_context`, one for all tests of a module: for artifacts that are dear to make and that no test changes."""
    contexts = StageContexts(tmp_path_factory.mktemp("shared"))
    yield contexts
    contexts.close()


class StageContexts:
    def __init__(self, folder: Path) -> None:
        from hornbook.events import Events
        from hornbook.store import Store

        self.store = Store(str(folder / "store"))
        self.events = Events(self.store, "runs/test")
        self.pools: dict[Any, Any] = {}

    def __call__(self, stage: Stage, **inputs: Sequence[Artifact]) -> StageContext:
        from hornbook.artifact import Artifact
        from hornbook.stage import StageContext

        return StageContext(
            artifact=Artifact(self.store, f"artifacts/{stage.name}"),
            inputs=inputs,
            input_stages={role: [Path(found.folder).name for found in artifacts] for role, artifacts in inputs.items()},
            stage=stage.name,
            seed=stage.seed,
            run="test",
            events=self.events,
            stop_requested=lambda: False,
            open_engine=self.open_engine,
        )

    def finished(self, stage: Stage, **inputs: Sequence[Artifact]) -> Artifact:
        from finished_artifact import finish

        context = self(stage, **inputs)
        result = stage.run(context)
        return finish(
            context.artifact, stage.produces, kind=stage.kind, stage=stage.name, seed=stage.seed,
            settings=stage.settings.identity(), inputs=inputs, input_stages=context.input_stages,
            metrics=result.metrics, files=result.files,
        )  # fmt: skip

    def open_engine(self, settings: Any, wait: bool = True) -> Any:
        from hornbook.engines.pool import EnginePool

        if settings not in self.pools:
            self.pools[settings] = EnginePool(settings)
        return self.pools[settings].handle(wait)

    def close_engines(self) -> None:
        """Stop the engines; the next stage that wants one gets a new one."""
        for pool in self.pools.values():
            pool.close()
        self.pools.clear()

    def close(self) -> None:
        self.close_engines()
        self.events.close()


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """A real S3 server on loopback; replace STORE in the URL to get an empty store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from moto.server import main; main(sys.argv[1:])",
            "-H",
            "127.0.0.1",
            "-p",
            str(port),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.2)
    from pyarrow.fs import S3FileSystem

    S3FileSystem(
        endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
    ).create_dir("corpora")
    yield f"s3://corpora/STORE?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    server.terminate()
    server.wait()
