"""Pushing: what is pushed is the corpus, its card is true, and a push that dies goes on without claiming to be whole."""

from __future__ import annotations

import hashlib
import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Answer
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi
from huggingface_hub.hf_api import RepoFile
from small_artifacts import make, stories
from typer.main import get_command

from hornbook.artifact import Artifact
from hornbook.card import MARK, dataset_card, features, fence, public_recipe, readable_schema
from hornbook.cli import app
from hornbook.documents import DOCUMENT_SCHEMA, Reject, document_id
from hornbook.errors import DataError, StoreError
from hornbook.fingerprint import fingerprint
from hornbook.push import HubTarget, StoreTarget, _upload, plan_shards, push, readable
from hornbook.runs import new_run
from hornbook.store import Store

DOCS = Path(__file__).parents[2] / "docs"
METRICS = {"openers": [["Once upon a", 4]], "d": {"n": 0.5}, "acceptance": {"m": {"planned": 36, "accepted": 30}}}
BOX = "```\n</div><script>alert(1)</script>\n````"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def corpus(store: Store, parts: int = 6, rows: int = 5) -> Artifact:
    """A corpus of `parts` parts; the last row planned of each is a reject."""
    contents = []
    for part in range(parts):
        start = part * (rows + 1)
        reject = Reject(start + rows, "the prompt", "truncated", "cut at 9 tokens", "half a")
        contents.append(stories([f"Story {row}. {BOX}" for row in range(start, start + rows)], [reject], start))
    return make(store, "tales", "stories", "documents", contents, metrics=METRICS)


def read_back(folder: Path) -> pa.Table:
    return pyarrow.dataset.dataset(folder / "data", format="parquet").to_table()


def expected(artifact: Artifact) -> pa.Table:
    return readable(pa.concat_tables(artifact.tables()))


def front_matter(card: str) -> dict[str, Any]:
    """What huggingface_hub's own reader finds, and keeps, of a card's YAML."""
    return DatasetCard(card).data.to_dict()


def shards_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "data").iterdir())}


def test_a_pushed_folder_reads_back_as_the_corpus(store: Store, tmp_path: Path) -> None:
    artifact, folder = corpus(store), tmp_path / "set"
    push(store, "stories", str(folder), licence="odc-by", rejects=True, shard_bytes=1, say=lambda line: None)
    assert list(shards_of(folder)) == [f"train-{number:05d}-of-00006.parquet" for number in range(6)]
    assert read_back(folder).equals(expected(artifact))
    row = read_back(folder).slice(0, 1).to_pylist()[0]
    assert (row["id"], bytes.fromhex(row["key"])[:5], row["parents"]) == (document_id(0), b"story", [])
    refused = pyarrow.dataset.dataset(folder / "rejects", format="parquet").to_table()
    assert refused["reason"].to_pylist() == ["truncated"] * 6


def test_datasets_loads_the_folder_by_its_card(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    artifact, folder = corpus(store), tmp_path / "set"
    push(store, "stories", str(folder), rejects=True, shard_bytes=1, say=lambda line: None)
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == expected(artifact).to_pylist()
    refused = datasets.load_dataset(str(folder), "rejects", split="train", cache_dir=str(tmp_path / "cache"))
    assert refused.num_rows == 6
    assert (
        features(readable_schema(DOCUMENT_SCHEMA))
        == datasets.Features.from_arrow_schema(readable_schema(DOCUMENT_SCHEMA))._to_yaml_list()
    )


def test_shards_are_bounded_and_whole(store: Store) -> None:
    artifact = corpus(store)
    sizes = [part.file("data").size for part in artifact.parts]
    shards = plan_shards(artifact, "data", sizes[0] + sizes[1])
    assert [part.start for shard in shards for part in shard.parts] == [part.start for part in artifact.parts]
    assert all(sum(part.file("data").size for part in shard.parts) <= sizes[0] + sizes[1] for shard in shards)
    assert len(shards) < 6


def test_a_shard_is_written_group_by_group(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(store)
    monkeypatch.setattr("hornbook.push.ROW_GROUP_BYTES", 1)
    push(store, "stories", str(tmp_path / "set"), say=lambda line: None)
    assert pq.ParquetFile(tmp_path / "set" / "data" / "train-00000-of-00001.parquet").num_row_groups == 6


def test_the_card_is_valid_and_says_what_is_in_the_manifest(store: Store, tmp_path: Path) -> None:
    artifact = corpus(store)
    source = {"name": "bed", "engine": {"base_url": "http://secret.internal/v1"},
              "stages": {"tales": {"kind": "stories", "rows": 36}}}  # fmt: skip
    stages = {"tales": {"kind": "stories", "folder": artifact.folder, "state": "made"}}
    with new_run(store, "bed", {"source": source, "stages": stages}) as run:
        run.update(state="succeeded")
    made = dataset_card(artifact, "latest/tales", "hf://datasets/me/tales", licence="odc-by")
    parsed = front_matter(made.text)
    assert parsed["license"] == "odc-by"
    assert parsed["size_categories"] == ["n<1K"]
    assert parsed["tags"] == ["hornbook", "synthetic"]
    assert parsed["language"] == ["en"]
    assert parsed["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert parsed["dataset_info"][0]["splits"][0]["num_examples"] == 30
    text = made.text
    assert yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])["stages"] == source["stages"]
    assert "secret.internal" not in text
    for told in (
        artifact.manifest.fingerprint,
        "| truncated | 6 | 16.7% |",
        "Once upon a (4)",
        "| m | 36 | 30 | 83.3% |",
        "stories.jinja",
        "bed: tales",
    ):
        assert told in text
    assert "the licence of the model m is unknown" in made.warnings
    assert not [warning for warning in made.warnings if "--license" in warning]
    assert [warning for warning in dataset_card(artifact, "stories", "x").warnings if "--license" in warning]


def test_the_card_shows_the_prompts_that_the_corpus_kept(store: Store) -> None:
    prompts = {"tales.jinja": {"version": "0123456789ab", "text": "Write a tale {{ now }}."}}
    artifact = make(store, "tales", "stories", "documents", [stories(["A tale."])], metrics={"prompts": prompts})
    text = dataset_card(artifact, "stories", "x").text
    assert "`tales.jinja` of the stage `tales`, version 0123456789ab" in text
    assert text.count("Write a tale {{ now }}.") == 1


def test_the_card_shows_the_prompts_of_what_the_corpus_was_made_from(store: Store) -> None:
    kept = {
        "a.jinja": {"version": "aaaaaaaaaaaa", "text": "Tell."},
        "a.words.txt": {"version": "bbbbbbbbbbbb"},
    }
    tales = make(store, "tales", "stories", "documents", [stories(["A tale."])], metrics={"prompts": kept})
    own = {"b.jinja": {"version": "cccccccccccc", "text": "Sum up."}}
    sums = make(
        store, "sums", "summaries", "documents", [stories(["A sum."])], {"documents": [tales]}, metrics={"prompts": own}
    )
    text = dataset_card(sums, "summaries", "x").text
    assert text.index("`b.jinja` of the stage `sums`, version cccccccccccc") < text.index("Sum up.")
    assert text.index("`a.jinja` of the stage `tales`, version aaaaaaaaaaaa") < text.index("Tell.")
    assert "- `a.words.txt` of the stage `tales`: bbbbbbbbbbbb" in text


def test_no_text_breaks_out_of_the_card(store: Store) -> None:
    text = dataset_card(corpus(store), "stories", "x").text
    inside, closing = False, ""
    for line in text.splitlines():
        mark = re.match(r"`{3,}", line)
        if mark and (not inside or line == closing):
            inside, closing = not inside, mark.group()
        assert inside or "<script>" not in line
    assert not inside
    assert fence("```").startswith("````\n")


def test_settings_that_are_nobodys_business_stay_here() -> None:
    source = {"stages": {"s": {"engines": [{"engine": {"base_url": "u", "model": "m", "request_log": "/l"}}]}}}
    assert public_recipe(source) == {"stages": {"s": {"engines": [{"engine": {"model": "m"}}]}}}


def test_a_push_that_dies_says_incomplete_and_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, folder = corpus(store), tmp_path / "set"
    write, told = StoreTarget.change, []

    def dies(self: StoreTarget, files: Any, delete: Any, message: str) -> None:
        if any("00003-of" in name for name in files):
            raise KeyboardInterrupt
        write(self, files, delete, message)

    monkeypatch.setattr(StoreTarget, "change", dies)
    with pytest.raises(KeyboardInterrupt):
        push(store, "stories", str(folder), shard_bytes=1, say=lambda line: None)
    readme = (folder / "README.md").read_text()
    assert "Incomplete" in readme and not readme.startswith("---")
    before = shards_of(folder)
    assert len(before) == 3
    (folder / "data" / "train-00001-of-00006.parquet").write_bytes(b"PAR1 damaged")
    monkeypatch.setattr(StoreTarget, "change", write)
    push(store, "stories", str(folder), shard_bytes=1, say=told.append)
    assert [line.split(":")[0][-22:-8] for line in told if "already" in line] == ["00000-of-00006", "00002-of-00006"]
    after = shards_of(folder)
    assert after["train-00000-of-00006.parquet"] == before["train-00000-of-00006.parquet"]
    assert read_back(folder).equals(expected(artifact))
    assert (folder / "README.md").read_text().startswith("---\n")


def test_another_push_replaces_the_shards_of_the_first(store: Store, tmp_path: Path) -> None:
    artifact, folder = corpus(store), tmp_path / "set"
    push(store, "stories", str(folder), shard_bytes=1, rejects=True, say=lambda line: None)
    (folder / "notes.txt").write_text("mine")
    push(store, "stories", str(folder), say=lambda line: None)
    assert list(shards_of(folder)) == ["train-00000-of-00001.parquet"]
    assert not list((folder / "rejects").iterdir())
    assert (folder / "notes.txt").exists()
    assert read_back(folder).equals(expected(artifact))
    stamp = (folder / "README.md").stat().st_mtime_ns
    push(store, "stories", str(folder), say=lambda line: None)
    assert (folder / "README.md").stat().st_mtime_ns == stamp


def test_what_is_not_ours_is_left_alone(store: Store, tmp_path: Path) -> None:
    corpus(store)
    (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(StoreError, match="did not write"):
        push(store, "stories", str(tmp_path), say=lambda line: None)
    assert (tmp_path / "README.md").read_text() == "# My project"


def test_only_documents_can_be_pushed(store: Store, tmp_path: Path) -> None:
    make(store, "net", "export", "model")
    with pytest.raises(DataError, match="holds model"):
        push(store, "export", str(tmp_path / "set"))


# --- the hub: a double stands where the outside world begins ---------------------------------------------------------


class Hub:
    """A data set repository; every call must fit the real HfApi's signature."""

    token = "hf_test"

    def __init__(self, private: bool = False, exists: bool = False, dies_after: int = 99) -> None:
        self.private, self.exists, self.dies_after = private, exists, dies_after
        self.content: dict[str, bytes] = {}
        self.commits: list[list[str]] = []

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        real = getattr(HfApi, name, None)
        if not callable(value) or real is None:
            return value

        def checked(*arguments: Any, **options: Any) -> Any:
            inspect.signature(real).bind(None, *arguments, **options)
            return value(*arguments, **options)

        return checked

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert (repo_id, repo_type, exist_ok) == ("me/tales", "dataset", True)
        self.private, self.exists = (self.private if self.exists else private), True

    def repo_info(self, repo_id: str, *, repo_type: str) -> Any:
        return SimpleNamespace(private=self.private)

    def list_repo_tree(self, repo_id: str, *, repo_type: str, recursive: bool) -> list[RepoFile]:
        found = [RepoFile(path=".gitattributes", size=3, oid="0")]
        for name, data in self.content.items():
            git = hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()
            lfs = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 9}
            large = {"lfs": lfs} if name.endswith("0-of-00006.parquet") else {}
            found.append(RepoFile(path=name, size=len(data), oid=git, **large))
        return found

    def hf_hub_download(
        self, repo_id: str, filename: str, *, repo_type: str, local_dir: str, force_download: bool
    ) -> str:
        path = Path(local_dir, filename)
        path.write_bytes(self.content[filename])
        return str(path)

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str, repo_type: str) -> None:
        if len(self.commits) >= self.dies_after:
            raise ConnectionError("the network is gone")
        self.commits.append([operation.path_in_repo for operation in operations])
        for operation in operations:
            if isinstance(operation, CommitOperationAdd):
                data = operation.path_or_fileobj
                self.content[operation.path_in_repo] = data if isinstance(data, bytes) else Path(str(data)).read_bytes()
            else:
                del self.content[operation.path_in_repo]


def to_hub(artifact: Artifact, hub: Hub, private: bool = False, together: int = 1) -> list[str]:
    said: list[str] = []
    target = HubTarget("me/tales", hub)
    target.together = together
    target.open(private)
    _upload(artifact, plan_shards(artifact, "data", 1), target, f"{MARK} card", target.readme(), said.append)
    return said


def test_the_hub_gets_shards_in_commits_and_the_card_last(store: Store) -> None:
    hub = Hub(dies_after=3)
    artifact = corpus(store)
    with pytest.raises(StoreError, match="network is gone"):
        to_hub(artifact, hub)
    assert "Incomplete" in hub.content["README.md"].decode()
    hub.dies_after = 99
    said = to_hub(artifact, hub)
    assert [line.split(":")[1] for line in said].count(" already there") == 2
    names = [f"data/train-{number:05d}-of-00006.parquet" for number in range(6)]
    assert hub.commits == [["README.md"], *[[name] for name in names], ["README.md"]]
    to_hub(artifact, hub)
    assert len(hub.commits) == 8  # everything was there
    together = Hub()
    to_hub(artifact, together, together=1 << 30)
    assert together.commits == [["README.md"], names, ["README.md"]]


def test_a_private_push_never_goes_to_a_public_repository(store: Store) -> None:
    with pytest.raises(StoreError, match="public"):
        to_hub(corpus(store), Hub(private=False, exists=True), private=True)
    hub = Hub()
    to_hub(corpus(store), hub, private=True)
    assert hub.private


def test_the_hub_without_a_token(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(store)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(StoreError, match="HF_TOKEN"):
        push(store, "stories", "hf://datasets/me/tales", say=lambda line: None, warn=lambda line: None)
    with pytest.raises(StoreError, match="OWNER/NAME"):
        push(store, "stories", "hf://me/tales", say=lambda line: None)


def test_the_command_pushes(hornbook: Callable[..., Answer], tmp_path: Path, store: Store) -> None:
    mark = fingerprint("stories", "generators.stories", {}, 1, {}, {})
    make(store, "s", "stories", "documents", [stories(["A tale."] * 3)], fingerprint=mark)
    dry = hornbook("push", "stories", "./set", "--dry-run")
    assert dry.code == 0 and not (tmp_path / "set").exists()
    assert "features" in dry.out and "The code is as it was" in dry.out
    assert "licence is `unknown`" in dry.err
    answer = hornbook("push", "stories", "./set", "--license", "cc0-1.0", "--rejects")
    assert answer.code == 0, answer.err
    card = front_matter((tmp_path / "set" / "README.md").read_text())
    assert card["license"] == "cc0-1.0"
    assert read_back(tmp_path / "set").num_rows == card["dataset_info"][0]["splits"][0]["num_examples"] == 3
    assert pyarrow.dataset.dataset(tmp_path / "set" / "rejects", format="parquet").count_rows() == 0


@pytest.mark.parametrize("page", ["publishing.md", "estimating.md"])
def test_a_page_shows_commands_that_parse(page: str) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    commands = [line.split("  #")[0] for block in blocks for line in block.splitlines()]
    assert len(commands) >= 3
    for command in commands:
        name, *rest = shlex.split(command)[1:]
        get_command(app).commands[name].make_context(name, rest)  # type: ignore[attr-defined]
