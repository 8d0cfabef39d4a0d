"""Connected components: those of the whole graph, whatever the shards, the ranges and the memory; few rounds; bounded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classifiers.candidates import PAIR
from classifiers.clusters import CLUSTERED, Slices
from classifiers.components import ComponentSteps
from classifiers.corpus_order import CorpusOrder
from classifiers.exchange import spilled
from classifiers.links import FACT
from classifiers.steps import OneWorker, Step
from classifiers.verification import EDGE
from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange, commit_part
from hornbook.store import Store


class Rows(CorpusOrder):
    """Parts of so many documents each, without the documents."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.starts = np.zeros(len(rows), np.int64)
        self.first = np.concatenate(([0], np.cumsum(rows, dtype=np.int64)))


class Joined:
    """What comes out of the steps for a graph.

    Args:
        rows: documents of each part of the corpora.
        copies: pairs of the first document of a text and another one of it, in files of so many.
        edges: pairs and their similarity, likewise.
        scores: of all documents, or None.
        ranges: parts that a worker joins at a time.
        at_once: records that it holds.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[int],
        copies: np.ndarray,
        edges: np.ndarray,
        shard: int,
        scores: np.ndarray | None = None,
        ranges: int = 1,
        at_once: int = 10,
    ) -> None:
        self.corpus = Rows(rows)
        store = Store(str(folder))
        work, sketches, candidates, similar = (
            Artifact(store, name) for name in ("work", "sketches", "candidates", "edges")
        )
        for number in range(len(rows)):
            low, high = self.corpus.first[number : number + 2]
            files = {} if scores is None else {"scores": scores[low:high].tobytes()}
            _commit(sketches, number, files, {})
        for artifact, records, role, count in (
            (candidates, copies, "exact", "copies"),
            (similar, edges, "edges", "verified"),
        ):
            for number, start in enumerate(range(0, max(1, len(records)), shard)):
                some = records[start : start + shard]
                _commit(artifact, number, {role: some.tobytes()}, {count: len(some)})
        blocks = np.unique([*range(0, len(rows), ranges), len(rows)])
        self.folders: list[str] = []
        steps = ComponentSteps(work, Slices(self.corpus, sketches, blocks, at_once), candidates, similar)
        OneWorker(self._watched(steps)).make(PartRange(0, 1))
        self.facts, self.clusters = steps.facts, steps.clusters

    def _watched(self, steps: ComponentSteps) -> Iterator[Step]:
        for step in steps:
            self.folders.append(step.artifact.folder.rpartition("/")[2])
            yield step

    def records(self, artifact: Artifact, role: str, dtype: np.dtype) -> np.ndarray:
        """Return all records of a role, each part of the corpora asked for by itself."""
        parts = self.corpus.parts
        found = [
            records
            for number in range(parts)
            for records in spilled(artifact, role, (number, number + 1), parts, dtype, 7)
            if self._inside(records["ordinal"], number)
        ]
        return np.concatenate([np.empty(0, dtype), *found])

    def _inside(self, ordinals: np.ndarray, number: int) -> bool:
        low, high = self.corpus.first[number : number + 2]
        assert ((ordinals >= low) & (ordinals < high)).all()
        return True

    @property
    def rounds(self) -> int:
        """How many small stars it took."""
        return sum(name.startswith("small") for name in self.folders)


def _commit(artifact: Artifact, number: int, files: dict[str, bytes], counts: dict[str, int]) -> None:
    content = PartContent(table=None, succeeded=1, files=files, counts=counts)
    commit_part(artifact.store, artifact.folder, PartRange(number, number + 1), content)


def first_of_component(count: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the first member of each one's component, by scipy."""
    graph = coo_array((np.ones(len(low)), (low, high)), shape=(count, count))
    component = connected_components(graph, directed=False)[1]
    return np.unique(component, return_index=True)[1][component]


def as_edges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    edges = np.empty(len(low), EDGE)
    edges["low"], edges["high"], edges["similarity"] = np.minimum(low, high), np.maximum(low, high), 0.9
    return edges


NO_COPIES = np.empty(0, PAIR)


@settings(max_examples=25)
@given(st.data())
def test_clusters_are_the_components_of_the_graph(data) -> None:
    rows = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda rows: sum(rows) > 1))
    count = sum(rows)
    # Texts first: a copy belongs to the first document of its text, and no two of these are alike.
    texts = np.array(data.draw(st.lists(st.integers(0, 2 * count), min_size=count, max_size=count)))
    copy_of = np.array([int(np.flatnonzero(texts == text)[0]) for text in texts])
    others = np.flatnonzero(copy_of != np.arange(count))
    copies = np.empty(len(others), PAIR)
    copies["low"], copies["high"] = copy_of[others], others
    ends = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda ends: ends[0] < ends[1])
    pairs = np.array(data.draw(st.lists(ends, max_size=3 * count)), np.int64).reshape(-1, 2)
    edges = as_edges(pairs[:, 0], pairs[:, 1])
    edges["similarity"] = data.draw(st.lists(st.floats(0.5, 1), min_size=len(edges), max_size=len(edges)))
    scores = data.draw(
        st.none() | st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=count, max_size=count).map(np.array)
    )
    shard, ranges = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 4))
    at_once = data.draw(st.sampled_from([1, 4, 15, 100]))
    with tempfile.TemporaryDirectory() as folder:
        made = Joined(Path(folder), rows, copies, edges, shard, scores, ranges, at_once)
        found = made.records(made.clusters, "clusters", CLUSTERED)
        facts = made.records(made.facts, "facts", FACT)
    low, high = np.concatenate([copies["low"], edges["low"]]), np.concatenate([copies["high"], edges["high"]])
    first = first_of_component(count, low, high)
    size = np.bincount(first, minlength=count)[first]
    assert sorted(found["ordinal"].tolist()) == np.flatnonzero(size > 1).tolist()
    for record in found:
        ordinal, members = record["ordinal"], np.flatnonzero(first == first[record["ordinal"]])
        assert record["first"] == members[0] and record["size"] == len(members)
        kept = members[0] if scores is None else members[np.argmax(scores[members])]
        assert record["kept"] == kept and record["kept_copy_of"] == copy_of[kept]
        mine = facts[facts["ordinal"] == ordinal]
        assert mine["copy_of"].min() == copy_of[ordinal]
        near = edges["similarity"][(edges["low"] == ordinal) | (edges["high"] == ordinal)].tolist()
        exact = [2.0] if ((copies["low"] == ordinal) | (copies["high"] == ordinal)).any() else []
        assert mine["similarity"].max() == max(exact + near)


def test_pairs_that_one_worker_can_hold_take_no_round(tmp_path) -> None:
    rng = np.random.default_rng(1)
    edges = as_edges(*rng.permutation(1000).reshape(2, -1))
    assert Joined(tmp_path / "one", [100] * 10, NO_COPIES, edges, 50, at_once=500).folders == [
        "links",
        "members",
        "clusters",
    ]
    assert Joined(tmp_path / "two", [100] * 10, NO_COPIES, edges, 50, at_once=100).folders[:2] == ["links", "large-00"]


def test_a_chain_of_a_hundred_thousand_takes_a_logarithm_of_rounds(tmp_path) -> None:
    count = 100_000
    for name, order in (("ordered", np.arange(count)), ("shuffled", np.random.default_rng(2).permutation(count))):
        edges = as_edges(order[:-1], order[1:])
        made = Joined(tmp_path / name, [2000] * 50, NO_COPIES, edges, 2000, ranges=5, at_once=5000)
        found = made.records(made.clusters, "clusters", CLUSTERED)
        assert len(found) == count and not found["first"].any() and (found["size"] == count).all()
        assert 1 < made.rounds <= 10  # log2 of the chain is 17


def test_a_hub_of_many_is_never_held_whole(tmp_path, monkeypatch) -> None:
    """One document with 20,000 neighbours: no array of records is larger than a few times what a worker may hold."""
    sizes = []
    concatenate = np.concatenate

    def watched(arrays, *arguments, **options):
        joined = concatenate(arrays, *arguments, **options)
        if joined.dtype.names:
            sizes.append(len(joined))
        return joined

    count = 20_001
    edges = as_edges(np.zeros(count - 1, np.int64), np.arange(1, count))
    monkeypatch.setattr("classifiers.exchange.np.concatenate", watched)
    made = Joined(tmp_path, [3000] * 6 + [2001], NO_COPIES, edges, 1000, ranges=2, at_once=500)
    monkeypatch.undo()
    found = made.records(made.clusters, "clusters", CLUSTERED)
    assert len(found) == count and not found["first"].any()
    assert max(sizes) <= 4 * 500  # two batches wait for a file, and a forest stands both ways
