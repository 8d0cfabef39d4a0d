"""Duplicates: what is found and what never is, whatever the parts, the slices and the crashes; the brakes; bad input."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from finished_artifact import finish
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import InProcess, context_of, corpus, finished

from classifiers.dedup import Dedup, DedupSettings
from classifiers.sketches import text_hash
from hornbook.artifact import Artifact
from hornbook.documents import Document, documents_table
from hornbook.errors import DataError, RecipeError, Stopped
from hornbook.parts import PartContent, PartRange, commit_part, missing_ranges, parquet_bytes, same_ids
from hornbook.shingles import band_hashes, bands_for, minhash, word_shingles, words_of
from hornbook.store import Store


@pytest.fixture(autouse=True, scope="module")
def each_step_by_itself():
    """As a corpus too large for one worker is treated: what comes out must be the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("classifiers.dedup.SMALL_CORPUS", 0)
        yield


WORDS = [first + vowel + last for first in "bdfgh" for vowel in "aeiou" for last in "lmnprst"]


def stage(name: str = "dedup", **changed) -> Dedup:
    return Dedup(name, DedupSettings(**changed), seed=1)


def random_text(rng: random.Random, words: int = 80) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def edited(rng: random.Random, text: str, changes: int) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), min(changes, len(words))):
        words[place] = f"new{rng.randrange(10**9)}"
    return " ".join(words)


def planted(rng: random.Random, originals: int, copies: int, words: int = 80, changes: int = 4) -> list[str]:
    texts = [random_text(rng, words) for _ in range(originals)]
    for _ in range(copies):
        texts.append(edited(rng, rng.choice(texts), rng.randint(0, changes)))
    rng.shuffle(texts)
    return texts


def rows_of(artifact: Artifact) -> list[dict]:
    return [row for table in artifact.tables() for row in table.to_pylist()]


def jaccard(one: str, other: str, shingle: int = 5) -> float:
    sets = [
        {tuple(words[at : at + shingle]) for at in range(max(1, len(words) - shingle + 1))}
        for words in (words_of(one), words_of(other))
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def components(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the first member of each one's component, the plain way."""
    root = list(range(count))
    for low, high in edges:
        a, b = root[low], root[high]
        root = [min(a, b) if entry in (a, b) else entry for entry in root]
    return root


def share_a_band(texts: Sequence[str], threshold: float) -> np.ndarray:
    """Return which documents agree in a band, each with each."""
    bands, rows = bands_for(threshold, 256)
    found = np.zeros((len(texts), len(texts)), bool)
    have = [place for place, text in enumerate(texts) if words_of(text)]
    signatures = minhash(*word_shingles([words_of(texts[place]) for place in have], 5), bands * rows)
    hashes = band_hashes(signatures, bands, rows)
    found[np.ix_(have, have)] = (hashes[:, None] == hashes[None]).any(axis=2)
    return found


# --- what is found --------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), part_rows=st.sampled_from([5, 9, 30]), threshold=st.sampled_from([0.5, 0.8, 1.0]))
def test_clusters_are_those_of_all_pairs_compared(seed: int, part_rows: int, threshold: float) -> None:
    rng = random.Random(seed)
    texts = planted(rng, 8, 12, words=rng.choice([3, 8, 40]), changes=6) + rng.choices(
        ["", " ", "...", "Fox!", "fox"], k=2
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        web = corpus(store, "web", texts, part_rows)
        rows = rows_of(finished(stage(threshold=threshold, largest_loss=1), store, documents=[web]))
    banded = share_a_band(texts, threshold)
    pairs = list(itertools.combinations(range(len(texts)), 2))
    exact = [(one, other) for one, other in pairs if text_hash(texts[one]) == text_hash(texts[other])]
    near = [
        (one, other) for one, other in pairs if banded[one, other] and jaccard(texts[one], texts[other]) >= threshold
    ]
    expected = components(len(texts), exact + near)
    assert [row["cluster"] for row in rows] == expected
    assert [row["kept"] for row in rows] == [first == place for place, first in enumerate(expected)]
    assert [row["cluster_size"] for row in rows] == [expected.count(first) for first in expected]
    copies = {other for _, other in exact}
    for place, row in enumerate(rows):
        assert row["duplicate"] == (None if row["kept"] else "exact" if place in copies else "near")
        assert row["duplicate_of"] == (None if row["kept"] else rows[expected[place]]["key"])
        neighbours = [1.0 for pair in exact if place in pair]
        neighbours += [jaccard(texts[one], texts[other]) for one, other in near if place in (one, other)]
        assert row["similarity"] == (pytest.approx(max(neighbours)) if neighbours else None)


def test_planted_pairs_are_found(tmp_path) -> None:
    rng = random.Random(3)
    originals = [random_text(rng, 150) for _ in range(400)]
    copies = [edited(rng, text, rng.randint(1, 5)) for text in originals]
    store = Store(str(tmp_path))
    rows = rows_of(finished(stage(largest_loss=1), store, documents=[corpus(store, "web", originals + copies, 100)]))
    wanted = [place for place in range(400) if jaccard(originals[place], copies[place]) >= 0.8]
    found = [place for place in wanted if rows[400 + place]["cluster"] == place]
    assert len(wanted) > 200 and len(found) >= 0.97 * len(wanted)
    for place, row in enumerate(rows[400:]):
        if not row["kept"]:
            assert row["cluster"] == place and row["similarity"] >= 0.8


def test_two_hundred_near_copies_come_together(tmp_path) -> None:
    """Their buckets are too large for all pairs; besides, 200 other texts have most of their frame in common."""
    rng = random.Random(13)
    frame, base = rng.choices(WORDS, k=170), rng.choices(WORDS, k=30)
    copies = [edited(rng, " ".join(frame + base), rng.randint(1, 2)) for _ in range(200)]
    others = [" ".join(frame + rng.choices(WORDS, k=30)) for _ in range(200)]
    texts = [(text, text in copies) for text in copies + others]
    rng.shuffle(texts)
    store = Store(str(tmp_path))
    made = finished(stage(largest_loss=1), store, documents=[corpus(store, "web", [text for text, _ in texts], 60)])
    rows = rows_of(made)
    clusters = {row["cluster"] for row, (_, copy) in zip(rows, texts, strict=True) if copy}
    assert len(clusters) == 1 and made.manifest.metrics["not_compared"] > 10_000
    assert all(row["kept"] for row, (_, copy) in zip(rows, texts, strict=True) if not copy)
    for row, (text, _) in zip(rows, texts, strict=True):
        if not row["kept"]:  # a fellow is as similar as is said
            assert row["similarity"] >= 0.8
            assert any(
                jaccard(text, other) == pytest.approx(row["similarity"])
                for place, (other, _) in enumerate(texts)
                if rows[place]["cluster"] == row["cluster"] and other != text
            )


def test_pairs_are_found_though_all_texts_share_a_frame(tmp_path) -> None:
    """Buckets of hundreds of texts that are alike, but less than the threshold, and of each one that is truly near."""
    rng = random.Random(14)
    frame = rng.choices(WORDS, k=130)
    originals = [" ".join(frame + rng.choices(WORDS, k=20)) for _ in range(500)]
    texts = originals + [edited(rng, text, rng.randint(1, 2)) for text in originals]
    order = rng.sample(range(1000), 1000)
    store = Store(str(tmp_path))
    web = corpus(store, "web", [texts[place] for place in order], 250)
    made = finished(stage(largest_loss=1), store, documents=[web])
    cluster = dict(zip(order, (row["cluster"] for row in rows_of(made)), strict=True))
    wanted = [place for place in range(500) if jaccard(texts[place], texts[500 + place]) >= 0.8]
    found = sum(cluster[place] == cluster[500 + place] for place in wanted)
    assert len(wanted) > 400 and made.manifest.metrics["not_compared"] > 100_000
    assert found >= 0.97 * len(wanted)
    assert made.manifest.metrics["largest_cluster"] == 2


def test_what_comes_out_depends_neither_on_parts_nor_on_memory(tmp_path) -> None:
    rng = random.Random(4)
    texts = planted(rng, 150, 150, changes=2)
    store = Store(str(tmp_path))
    seen = []
    for name, part_rows, memory in (("a", 300, 512), ("b", 7, 1), ("c", 64, 2)):
        web = corpus(store, name, texts, part_rows, sources=["web"] * len(texts))
        made = finished(stage(f"dedup-{name}", largest_loss=1, worker_memory=memory), store, documents=[web])
        assert [part.range for part in made.parts] == [part.range for part in web.parts]
        rows = rows_of(made)
        assert [row["key"] for row in rows] == [row["key"] for row in rows_of(web)]
        seen.append([{name: row[name] for name in row if name not in ("key", "duplicate_of")} for row in rows])
        seen[-1].append({name: made.manifest.metrics[name] for name in ("candidates", "refused", "near", "exact")})
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][-1]["near"] > 50


def test_duplicates_cross_corpora_and_the_first_one_is_kept(tmp_path) -> None:
    rng = random.Random(5)
    store = Store(str(tmp_path))
    texts = [random_text(rng) for _ in range(30)]
    one = corpus(store, "one", texts[:20], 6)
    nothing = corpus(store, "nothing", [])
    two = corpus(store, "two", [texts[3] + "  \n", edited(rng, texts[4], 1), texts[25]], 2)
    made = finished(stage(largest_loss=1), store, documents=[one, nothing, two])
    rows, keys = rows_of(made), [row["key"] for row in rows_of(one)]
    assert [row["duplicate"] for row in rows] == [None] * 20 + ["exact", "near", None]
    assert [row["duplicate_of"] for row in rows[20:]] == [keys[3], keys[4], None]
    assert [part.start for part in made.parts] == [0, 6, 12, 18, 20, 22]  # the second corpus's parts after the first's
    assert [row["id"] for row in rows] == [row["id"] for artifact in (one, two) for row in rows_of(artifact)]
    assert made.manifest.metrics["losses"] == [
        {"source": "two", "lost": 2, "share": 0.6667},
        {"source": "one", "lost": 0, "share": 0.0},
    ]


def test_white_space_and_unicode_forms_make_no_difference_and_case_makes_one(tmp_path) -> None:
    store = Store(str(tmp_path))
    web = corpus(store, "web", ["Caf\u00e9 au  lait", "Cafe\u0301\nau lait ", "caf\u00e9 au lait"])
    assert [row["duplicate"] for row in rows_of(finished(stage(near=False), store, documents=[web]))] == [
        None,
        "exact",
        None,
    ]


def test_a_language_without_spaces_is_compared_by_characters(tmp_path) -> None:
    rng = random.Random(6)
    story = "".join(chr(0x4E00 + rng.randrange(2000)) for _ in range(200))
    other = "".join(chr(0x4E00 + rng.randrange(2000)) for _ in range(200))
    store = Store(str(tmp_path))
    web = corpus(store, "web", [story, story[:100] + "\u4e00" + story[101:], other])
    assert [row["duplicate"] for row in rows_of(finished(stage(), store, documents=[web]))] == [None, "near", None]


def test_the_seeds_setting_compares_sets_of_single_characters(tmp_path) -> None:
    store = Store(str(tmp_path))
    web = corpus(store, "web", ["abcdefghij", "jihgfe dcba", "abcdefghijk", "abcdxyz"])
    made = stage(unit="characters", shingle=1, threshold=0.85, permutations=256)
    rows = rows_of(finished(made, store, documents=[web]))
    assert [row["kept"] for row in rows] == [True, False, False, True]
    assert [row["similarity"] for row in rows] == [1.0, 1.0, pytest.approx(10 / 11), None]


def test_the_seeds_setting_finds_changed_chinese_texts_and_keeps_the_first(tmp_path) -> None:
    rng = random.Random(15)
    letters = [chr(0x4E00 + number) for number in range(3000)]
    common = letters[:60]  # as in any language, some characters are in most texts
    originals = ["".join(rng.sample(common, 40) + rng.sample(letters, 80)) for _ in range(150)]
    changed = []
    for text in originals:
        places = set(rng.sample(range(len(text)), rng.randint(0, 12)))
        changed.append("".join(rng.choice(letters) if at in places else sign for at, sign in enumerate(text)))
    store = Store(str(tmp_path))
    web = corpus(store, "web", [*originals, *changed], 40)
    made = finished(
        stage(unit="characters", shingle=1, threshold=0.85, permutations=256, largest_loss=1), store, documents=[web]
    )
    rows = rows_of(made)
    truly = [
        len(set(one) & set(other)) / len(set(one) | set(other)) for one, other in zip(originals, changed, strict=True)
    ]
    assert all(row["kept"] for row in rows[:150])
    near = [place for place in range(150) if truly[place] >= 0.85]
    assert 50 < len(near) < 140
    dropped = {place for place in range(150) if not rows[150 + place]["kept"]}
    assert dropped <= set(near) and len(dropped) >= 0.97 * len(near)
    assert all(rows[150 + place]["similarity"] == pytest.approx(truly[place]) for place in dropped)


def test_very_long_documents_are_compared_exactly_only(tmp_path) -> None:
    rng = random.Random(7)
    store = Store(str(tmp_path))
    text = random_text(rng, 120)
    web = corpus(store, "web", [text, edited(rng, text, 1), text])
    made = finished(stage(longest=100), store, documents=[web])
    assert [row["duplicate"] for row in rows_of(made)] == [None, None, "exact"]
    assert made.manifest.metrics["exactly_only"] == 3


# --- which one is kept ----------------------------------------------------------------------------------------------------


def attributes(store: Store, documents: Artifact, scores: Sequence[float | None], column: str = "score") -> Artifact:
    artifact = Artifact(store, f"{documents.folder}-scores")
    scores = list(scores)
    for part in documents.parts:
        table = documents.read(part, columns=["id", "key"])
        values = pa.array([scores.pop(0) for _ in range(table.num_rows)])
        content = PartContent(
            table=table.append_column(column, values), planned=table.column("id").to_numpy(), unit_of=same_ids
        )
        commit_part(store, artifact.folder, part.range, content)
    finish(artifact, "attributes", kind="quality")
    return artifact


def test_the_best_of_a_cluster_is_kept(tmp_path) -> None:
    rng = random.Random(8)
    store = Store(str(tmp_path))
    text = random_text(rng, 150)
    web = corpus(store, "web", [text, text, edited(rng, text, 1), random_text(rng), text], 2)
    scores = attributes(store, web, [0.1, float("nan"), 0.9, 0.0, 0.9])
    rows = rows_of(finished(stage(keep="best"), store, documents=[web], attributes=[scores]))
    assert [row["kept"] for row in rows] == [False, False, True, True, False]  # of equals the first
    assert [row["duplicate"] for row in rows] == ["near", "exact", None, None, "exact"]
    assert {row["duplicate_of"] for row in rows} == {None, rows[2]["key"]}
    with pytest.raises(DataError, match="no column 'grade' of numbers; it has id"):
        finished(stage("other", keep="best", score="grade"), store, documents=[web], attributes=[scores])
    with pytest.raises(RecipeError, match="needs the scores of 1 inputs and has those of 0"):
        finished(stage("third", keep="best"), store, documents=[web])


# --- brakes ---------------------------------------------------------------------------------------------------------------

FRAME = (
    "One day {name} went to the {place} with a small red ball . The sun was warm and a bird sang in the tall old tree . "
    "It was such a good day that nobody wanted to go home , and they all ran and laughed until the evening came . "
    "Then mother called everyone to eat , and there was bread and milk for each of them ."
)


def templated(names: int, places: int) -> list[str]:
    return [FRAME.format(name=f"name{n}", place=f"place{p}") for n in range(names) for p in range(places)]


def test_templated_stories_are_no_duplicates_where_minhash_alone_takes_them_for_such(tmp_path) -> None:
    rng = random.Random(9)
    names, places = rng.sample(range(1000), 200), rng.sample(range(1000), 200)  # no story shares a name or a place
    texts = [FRAME.format(name=f"name{name}", place=f"place{place}") for name, place in zip(names, places, strict=True)]
    truly = sum(jaccard(one, other) >= 0.8 for one, other in itertools.combinations(texts, 2))
    store = Store(str(tmp_path))
    made = finished(stage(), store, documents=[corpus(store, "stories", texts)])
    assert truly == 0 and all(row["kept"] for row in rows_of(made))
    assert made.manifest.metrics["refused"] > 500  # pairs that share a band, and that plain MinHash drops unseen
    banded = share_a_band(texts, 0.8)
    plain = components(200, [pair for pair in itertools.combinations(range(200), 2) if banded[pair]])
    assert len(set(plain)) < 20  # what it would have left


def test_a_source_that_would_be_wiped_out_stops_the_stage_until_it_is_allowed(tmp_path) -> None:
    rng = random.Random(10)
    texts = templated(12, 12) + [random_text(rng) for _ in range(150)]
    store = Store(str(tmp_path))
    web = corpus(store, "web", texts, 50, sources=["stories"] * 144 + ["web"] * 150)
    with pytest.raises(DataError) as raised:
        finished(stage(largest_cluster=100), store, documents=[web])
    message = raised.value.message
    assert "1 clusters are larger than largest_cluster (100 documents); the largest has 144" in message
    assert "the source 'stories' would lose 143 of 144 documents (99.3%; 50.0% is allowed)" in message
    assert "stories: One day name0 went to the place1 with" in message
    assert "'web'" not in message
    assert "allow_large_clusters: true" in raised.value.cure and "allow_loss: {stories: 1}" in raised.value.cure
    with pytest.raises(DataError, match="the source 'stories'"):
        finished(stage(largest_cluster=100, allow_large_clusters=True), store, documents=[web])
    released = stage(largest_cluster=100, allow_large_clusters=True, allow_loss={"stories": 1})
    assert released.settings.identity() == stage().settings.identity()  # the same artifact: what was computed is kept
    context = counting(context_of(released, store, documents=[web]))
    released.run(context)
    assert context.made == []
    assert finished(released, store, documents=[web]).manifest.metrics["largest_cluster"] == 144


def test_a_brake_sees_clusters_that_were_joined_in_rounds(tmp_path) -> None:
    store = Store(str(tmp_path))
    texts, sources = ["The licence."] * 5000 + ["Its preface."] * 30, ["licences"] * 2600 + ["web"] * 2430
    web = corpus(store, "web", texts, 400, sources=sources)
    strict = stage(near=False, worker_memory=1, loss_documents=2600)
    context = counting(context_of(strict, store, documents=[web]))
    with pytest.raises(DataError) as raised:
        strict.run(context)
    assert any("/work/large-00/" in part for part in context.made)
    message = raised.value.message
    assert "1 clusters are larger than largest_cluster (1,000 documents); the largest has 5,000" in message
    assert "licences: The licence." in message and "preface" not in message
    assert "the source 'licences' would lose 2,599 of 2,600 documents" in message and "'web'" not in message
    summary = store.read_json(f"{context.artifact.folder}/dedup.json")
    assert summary["cluster_sizes"] == {"30": 1, "5000": 1}
    assert {name: len(some) for name, some in summary["examples"]["clusters"].items()} == {"0": 3, "5000": 3}
    assert {name: len(some) for name, some in summary["examples"]["sources"].items()} == {"licences": 3, "web": 3}


def test_a_small_source_may_lose_all_it_has(tmp_path) -> None:
    store = Store(str(tmp_path))
    web = corpus(store, "web", ["the same text", "the same text", "another"], sources=["a", "b", "b"])
    assert [row["kept"] for row in rows_of(finished(stage(), store, documents=[web]))] == [True, False, True]
    with pytest.raises(DataError, match="the source 'b' would lose 1 of 2"):
        finished(stage("strict", loss_documents=1, largest_loss=0.4), store, documents=[web])


# --- crashes and bad input ------------------------------------------------------------------------------------------------


@dataclass
class Counting(InProcess):
    """Counts the parts it makes, and dies before making one more than it may."""

    may: float = float("inf")
    made: list[str] = field(default_factory=list)  # folder and part; shared with the contexts of the steps

    def make_parts(self, maker, ranges, **options):
        ranges = list(ranges)
        for part in missing_ranges(self.artifact.store, self.artifact.folder, ranges):
            if len(self.made) >= self.may:
                raise Stopped("killed")
            super().make_parts(maker, [part], **options)
            self.made.append(f"{self.artifact.folder}/{part.name}")
        return super().make_parts(maker, ranges, **options)


def counting(context: InProcess, may: float = float("inf")) -> Counting:
    return Counting(**vars(context), may=may)


def test_killed_anywhere_the_same_command_goes_on(tmp_path) -> None:
    rng = random.Random(11)
    texts = planted(rng, 40, 40)
    store = Store(str(tmp_path))
    web = corpus(store, "web", texts, 20)
    whole = finished(stage("whole", largest_loss=1), store, documents=[web])
    made = stage("dedup", largest_loss=1)
    for attempt in itertools.count():
        context = counting(context_of(made, store, documents=[web]), may=1)
        try:
            # More memory in a later attempt must not tear what is cut already.
            Dedup("dedup", made.settings.model_copy(update={"worker_memory": 1 + attempt}), seed=1).run(context)
            break
        except Stopped:
            assert len(context.made) == 1
    assert attempt > 12
    again = finished(made, store, documents=[web])
    assert again.manifest.digest == whole.manifest.digest
    assert store.names(again.folder) == store.names(whole.folder)
    assert "work" not in store.names(again.folder)


def test_doubled_ids_are_named(tmp_path) -> None:
    store = Store(str(tmp_path))
    artifact = Artifact(store, "artifacts/web")
    rows = [Document(id=5, key=b"k" * 16, text=text, source="s", kind="web") for text in ("one", "other")]
    content = PartContent(table=None, succeeded=2, files={"data": parquet_bytes(documents_table(rows))})
    commit_part(store, artifact.folder, PartRange(0, 2), content)
    finish(artifact, "documents", kind="files")
    with pytest.raises(DataError, match=r"artifacts/web, part 0: the id 5 belongs to several documents"):
        finished(stage(), store, documents=[artifact])


def test_a_corpus_that_is_named_twice_is_refused(tmp_path) -> None:
    store = Store(str(tmp_path))
    web = corpus(store, "web", ["one", "other"])
    with pytest.raises(RecipeError, match="inputs 1 and 3 are one corpus"):
        finished(stage(), store, documents=[web, corpus(store, "books", ["third"]), web])
    nothing = corpus(store, "nothing", [])
    assert len(rows_of(finished(stage(), store, documents=[nothing, web, nothing]))) == 2


def test_empty_corpora_and_empty_parts(tmp_path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(DataError, match="there are no documents in which to find duplicates"):
        finished(stage(), store, documents=[corpus(store, "nothing", [])])
    hollow = Artifact(store, "artifacts/hollow")
    commit_part(store, hollow.folder, PartRange(0, 3), PartContent(table=documents_table([]), empty=3))
    rows = [Document(id=5 << 16, key=b"k" * 16, text="text", source="s", kind="web")]
    commit_part(store, hollow.folder, PartRange(3, 6), PartContent(table=documents_table(rows), empty=2))
    commit_part(store, hollow.folder, PartRange(6, 9), PartContent(table=documents_table([]), empty=3))
    finish(hollow, "documents", kind="files")
    made = finished(stage("some"), store, documents=[hollow])
    assert [part.rows for part in made.parts] == [0, 1, 0] and rows_of(made)[0]["kept"]


def test_more_duplicates_than_a_worker_can_join_at_once_take_rounds(tmp_path) -> None:
    store = Store(str(tmp_path))
    texts = [f"the text {number}" for number in range(300)] * 20 + ["one more"]
    web = corpus(store, "web", texts, 1000)
    seen = []
    for name, memory in (("much", 512), ("little", 1)):
        made = stage(name, near=False, worker_memory=memory, largest_loss=1)
        context = counting(context_of(made, store, documents=[web]))
        made.run(context)
        assert any("/work/large-00/" in part for part in context.made) == (memory == 1)
        seen.append(rows_of(context.artifact))
    assert sum(row["kept"] for row in seen[0]) == 301
    assert seen[0] == seen[1]


def test_on_workers_the_same_comes_out(ray_cluster, stage_context, monkeypatch) -> None:
    rng = random.Random(12)
    texts = planted(rng, 60, 60)
    web = corpus(stage_context.store, "web", texts, 30)
    here = finished(stage("here", largest_loss=1), stage_context.store, documents=[web])
    monkeypatch.setattr("classifiers.dedup.SMALL_CORPUS", 1000)
    there = stage_context.finished(stage("there", largest_loss=1), documents=[web])
    assert there.manifest.digest == here.manifest.digest
    assert there.manifest.metrics == here.manifest.metrics
    assert there.store.names(there.folder) == here.store.names(here.folder)
