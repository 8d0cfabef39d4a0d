"""Instruction sets as chat records: every format's rows, trees over borders of parts, what is refused; read from real files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import corpus, finished

from classifiers.files import PLAN, Files, FilesSettings
from hornbook.artifact import Artifact
from hornbook.chat import chat_of
from hornbook.preference import Preference, preference_of
from hornbook.store import Store
from training.chat_formats import FORMATS
from training.chat_records import ChatRecords, ChatRecordsSettings

CALLS = [{"name": "weather", "arguments": {"city": "Rome"}}]
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "message_id": "a", "text": "Hi", "role": "prompter",
        "replies": [
            {"message_id": "b", "text": "Hello", "role": "assistant", "replies": []},
            {
                "message_id": "c", "text": "Yes?", "role": "assistant",
                "replies": [{"message_id": "d", "text": "Bye", "role": "prompter", "replies": []}],
            },
        ],
    },
}  # fmt: skip
ROWS: list[tuple[str, dict[str, Any], list[list[tuple[str, str]]]]] = [
    ("magicoder", {"problem": "P", "solution": "S", "lang": "python"}, [[("user", "P"), ("assistant", "S")]]),
    ("magicoder", {"instruction": "I", "response": "R"}, [[("user", "I"), ("assistant", "R")]]),
    ("coig-cqia", {"instruction": "问", "input": "文", "output": "答"}, [[("user", "问\n\n文"), ("assistant", "答")]]),
    ("evol-instruct-code", {"instruction": "I", "output": "O"}, [[("user", "I"), ("assistant", "O")]]),
    ("math-instruct", {"source": "x", "instruction": "1+1", "output": "2"}, [[("user", "1+1"), ("assistant", "2")]]),
    (
        "slim-orca",
        {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "H"}, {"from": "gpt", "value": "G"}]},
        [[("system", "S"), ("user", "H"), ("assistant", "G")]],
    ),
    (
        "open-hermes",
        {"system_prompt": "S", "conversations": [{"from": "human", "value": "H"}, {"from": "gpt", "value": "G"}]},
        [[("system", "S"), ("user", "H"), ("assistant", "G")]],
    ),
    ("open-hermes", {"instruction": "I", "input": "", "output": "O"}, [[("user", "I"), ("assistant", "O")]]),
    ("ultra-chat", {"id": "1", "data": ["Q", "A"]}, [[("user", "Q"), ("assistant", "A")]]),
    (
        "ultra-chat",
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        [[("user", "Q"), ("assistant", "A")]],
    ),
    (
        "commit-pack-ft",
        {"subject": "Fix it", "old_contents": "a = 1\n", "new_contents": "a = 2\n", "lang": "Python"},
        [[("user", "Fix it\n\n```python\na = 1\n```"), ("assistant", "```python\na = 2\n```")]],
    ),
    ("oasst2", TREE, [[("user", "Hi"), ("assistant", "Hello")], [("user", "Hi"), ("assistant", "Yes?")]]),
    (
        "glaive",
        {
            "system": "SYSTEM: You can call: {}",
            "chat": "USER: Weather?\n\n\nASSISTANT: <functioncall> {} <|endoftext|>\n\n\nFUNCTION RESPONSE: {\"t\": 1}\n\n\n"
            "ASSISTANT: Cold. <|endoftext|>",
        },
        [[
            ("system", "You can call: {}"), ("user", "Weather?"), ("assistant", "<functioncall> {}"),
            ("user", 'Function response: {"t": 1}'), ("assistant", "Cold."),
        ]],
    ),
    ("glaive", {"question": "Q", "answer": "A"}, [[("user", "Q"), ("assistant", "A")]]),
]  # fmt: skip


def made(tmp_path: Path, rows: list[Any], form: str, part_rows: int = 10) -> Artifact:
    store = Store(str(tmp_path))
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    stage = ChatRecords("chats", ChatRecordsSettings(format=form), seed=1)  # type: ignore[arg-type]
    return finished(stage, store, documents=[corpus(store, "raw", texts, part_rows)])


def documents(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for table in artifact.tables() for row in table.to_pylist()]


def chats(artifact: Artifact) -> list[list[tuple[str, str]]]:
    return [[(turn["role"], turn["content"]) for turn in chat_of(row["meta"])] for row in documents(artifact)]


@pytest.mark.parametrize(("form", "row", "expected"), ROWS)
def test_a_row_of_each_format(tmp_path: Path, form: str, row: dict[str, Any], expected: Any) -> None:
    assert chats(made(tmp_path, [row], form)) == expected


def test_every_format_has_a_row_here() -> None:
    assert set(FORMATS) - {form for form, _, _ in ROWS} == {"api-gen", "the-stack-smol", "messages"}


def test_function_calls_of_api_gen_and_plain_code(tmp_path: Path) -> None:
    tools = [{"name": "weather", "description": "Tells it.", "parameters": {"city": {"type": "str"}}}]
    row = {"id": 0, "query": "Rome?", "tools": json.dumps(tools), "answers": json.dumps(CALLS)}
    (chat,) = chats(made(tmp_path / "a", [row], "api-gen"))
    assert [role for role, _ in chat] == ["system", "user", "assistant"] and '"weather"' in chat[0][1]
    assert json.loads(chat[2][1]) == [{"id": 0, **CALLS[0]}]
    (code,) = documents(made(tmp_path / "b", [{"content": "x = 1\n", "lang": "Python"}], "the-stack-smol"))
    assert (code["text"], code["kind"], code["source"], "chat" in code["meta"]) == (
        "x = 1\n",
        "text",
        "the-stack-smol",
        False,
    )


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("magicoder", {"problem": "P"}, "no field solution or response"),
        ("magicoder", {"problem": "P", "solution": None}, "solution: NoneType, not text"),
        ("magicoder", {"problem": " ", "solution": "S"}, "turn 0: empty"),
        ("slim-orca", {"conversations": [{"from": "narrator", "value": "x"}]}, "unknown role 'narrator'"),
        ("slim-orca", {"conversations": "x"}, "is no list of turns"),
        ("slim-orca", {"conversations": [3]}, "turn 0: not an object"),
        ("ultra-chat", {"data": ["only a question"]}, "no assistant turn"),
        ("ultra-chat", {"data": ["Q", "A"] * 40}, "80 turns, max_turns is 64"),
        ("messages", {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}] * 1
                      + [{"role": "assistant", "content": "B"}]}, "the assistant speaks twice"),
        ("messages", {"messages": [{"role": "user", "content": "Q"}, {"role": "system", "content": "S"},
                                   {"role": "assistant", "content": "A"}]}, "a system prompt that is not first"),
        ("api-gen", {"query": "q", "tools": "[", "answers": "[]"}, "tools is no JSON"),
        ("api-gen", {"query": "q", "tools": "[]", "answers": "[{}]"}, "a call without a name"),
        ("glaive", {"system": "", "chat": "hello"}, "chat begins with no turn"),
        ("oasst2", {"message_tree_id": "t"}, "no field prompt"),
        ("oasst2", {"prompt": {"role": "prompter", "text": "Q", "replies": ["A"]}}, "its replies are no list of messages"),
        ("oasst2", {"prompt": {"role": "prompter", "text": "Q", "replies": 3}}, "its replies are no list of messages"),
        ("messages", "[" * 200_000, "the document is no JSON"),
        ("the-stack-smol", {"content": " "}, "the text is empty"),
        ("messages", "no json", "the document is no JSON"),
        ("messages", "[1]", "is no JSON object"),
    ],
)  # fmt: skip
def test_rows_that_teach_nothing_are_rejects_with_their_reason(
    tmp_path: Path, form: str, row: Any, reason: str
) -> None:
    good = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    artifact = made(tmp_path, [row, good if form == "messages" else row], form)
    rejects = [found for table in artifact.tables("rejects") for found in table.to_pylist()]
    assert reason in rejects[0]["detail"] and rejects[0]["reason"] == "bad-row"
    assert len(rejects) + len(documents(artifact)) == 2


def flat(tree: str, children: list[int]) -> list[dict[str, Any]]:
    """Messages of a tree; `children[n]` is the parent of message n + 1."""
    rows: list[dict[str, Any]] = []
    for number, parent in enumerate([None, *children]):
        role = "prompter" if parent is None or rows[parent]["role"] == "assistant" else "assistant"
        name = None if parent is None else f"{tree}{parent}"
        rows.append({"message_id": f"{tree}{number}", "parent_id": name, "message_tree_id": tree, "role": role,
                     "text": f"{tree}{number}"})  # fmt: skip
    return rows


trees = st.lists(
    st.integers(0, 6).flatmap(lambda size: st.tuples(*[st.integers(0, number) for number in range(size)])),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)  # files are written
@given(trees, st.integers(1, 7))
def test_trees_of_single_messages_are_the_same_whatever_the_parts(
    tmp_path_factory: Any, shapes: Any, part_rows: int
) -> None:
    rows = [row for number, shape in enumerate(shapes) for row in flat("abcdefg"[number], list(shape))]
    whole = []
    for number, shape in enumerate(shapes):
        leaves = set(range(len(shape) + 1)) - set(shape)
        paths = set()
        for leaf in leaves:
            path, at = [], leaf
            while True:
                path.append(at)
                if at == 0:
                    break
                at = shape[at - 1]
            path = path[::-1][: len(path) - len(path) % 2]
            if path:
                paths.add(tuple(f"{'abcdefg'[number]}{at}" for at in path))
        whole += sorted(paths)
    artifact = made(tmp_path_factory.mktemp("trees"), rows, "oasst2", part_rows)
    found = sorted(tuple(text for _, text in chat) for chat in chats(artifact))
    assert found == sorted(whole)
    counts = artifact.manifest.counts
    assert counts["planned"] == len(rows) == counts["succeeded"] + counts["rejected"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"message_id": ["a1"]}, "message_id is no name"),
        ({"message_id": "a0"}, "two messages have the same message_id"),
    ],
)
def test_a_tree_that_cannot_be_put_together_is_one_reject(tmp_path: Path, spoil: dict[str, Any], reason: str) -> None:
    bad, good = flat("a", [0]), flat("b", [0])
    bad[1] |= spoil
    artifact = made(tmp_path, [*bad, *good], "oasst2")
    (reject,) = (row for table in artifact.tables("rejects") for row in table.to_pylist())
    assert reason in reject["detail"] and len(documents(artifact)) == 1


def test_whole_rows_come_out_of_every_format_of_file(tmp_path: Path) -> None:
    rows = [{"instruction": f"I {number}", "input": "", "output": 'say "hi"\nthere'} for number in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    with (tmp_path / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output"])
        writer.writeheader()
        writer.writerows(rows)
    store = Store(str(tmp_path / "store"))
    for name in ("a.jsonl", "b.json", "c.parquet", "d.csv"):
        files = FilesSettings(paths=(str(tmp_path / name),), text_field="*", part_rows=2)
        read = finished(Files(f"read-{name[0]}", files, seed=1), store)
        assert any(entry.name == PLAN for entry in read.manifest.files)
        stage = ChatRecords(f"chats-{name[0]}", ChatRecordsSettings(format="evol-instruct-code"), seed=1)
        expected = [[("user", row["instruction"]), ("assistant", row["output"])] for row in rows]
        assert chats(finished(stage, store, documents=[read])) == expected, name


def test_pairs_of_answers_are_read_for_preference_tuning(tmp_path: Path) -> None:
    asked, said = {"role": "user", "content": "Does ice float?"}, {"role": "assistant", "content": "Yes."}
    rows = [
        {"prompt": "Does ice float?", "chosen": "Yes.", "rejected": "No.", "score": 3},
        {"prompt": [asked], "chosen": [said], "rejected": "No."},
        {"prompt": "Does ice float?", "chosen": [asked, said], "rejected": "No."},
        {"prompt": "Does ice float?", "chosen": "Yes."},
    ]
    artifact = made(tmp_path, rows, "preferences", 2)
    pairs = [preference_of(row["meta"]) for table in artifact.tables(columns=["meta"]) for row in table.to_pylist()]
    assert pairs == [Preference(({"role": "user", "content": "Does ice float?"},), "Yes.", "No.")] * 3
    assert artifact.manifest.counts["rejected"] == 1
