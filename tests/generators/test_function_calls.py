"""Function calls: what is asked is planned, what comes back is checked, and what is kept is a chat in one of four forms."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.call_plan import CallPlan, tool_combinations
from generators.function_calls import LEARNED_EXAMPLES, FunctionCalls, FunctionCallSettings
from generators.grounding import ungrounded
from generators.prompted import Parsed, Prompt, Refused
from hornbook.artifact import Artifact
from hornbook.chat import chat_of
from hornbook.engines.echo_json import example
from hornbook.engines.schema import violation
from hornbook.errors import RecipeError
from hornbook.jobs import code_digest, staged_code
from hornbook.pipeline import plan_recipe
from hornbook.recipe import Recipe, load_recipe
from hornbook.store import Store
from hornbook.tool_calls import FORMS, canonical_calls, parse_calls, render_calls, validate_calls
from hornbook.tools import fits, to_droidcall

ROOT = Path(__file__).parents[2]
PHONE = (
    "set_alarm start_timer add_event call send_text send_email navigate take_photo set_volume set_brightness set_wifi "
    "set_bluetooth find_number add_contact write_note play_music search_web get_weather open_settings set_reminder "
    "read_messages find_nearby set_flashlight do_not_disturb airplane_mode battery_left open_app record_audio share_file"
)
OTHERS = (
    "convert_units convert_money define_word translate search_flights book_flight find_recipe book_table next_departure "
    "sun_time sports_score track_parcel calculate"
)


def calls(seed: int = 0, **values: Any) -> FunctionCalls:
    return FunctionCalls("calls", FunctionCallSettings(**{"rows": 1000, "engine": {"kind": "echo"}, **values}), seed)


def parsed(stage: FunctionCalls, prompt: Prompt, query: str, *made: tuple[str, dict[str, Any]]) -> Parsed:
    reply = {"query": query, "calls": [{"name": name, "arguments": arguments} for name, arguments in made]}
    return stage.parse(prompt, json.dumps(reply))


# --- our own catalogue --------------------------------------------------------------------------------------------------


def test_the_catalogue_has_the_promised_tools_with_examples() -> None:
    catalogue = calls().catalogue
    assert set(PHONE.split()) | set(OTHERS.split()) <= set(catalogue.tools)
    assert len(PHONE.split()) >= 24 and len(OTHERS.split()) >= 10
    assert all(len(tool.examples) >= 2 for tool in catalogue)


def test_all_examples_pass_the_checks_themselves() -> None:
    stage = calls()
    for tool in stage.catalogue:
        for shown in tool.examples:
            made = [{"id": 0, "name": tool.name, "arguments": shown["arguments"]}]
            assert ungrounded(shown["query"], made, stage.catalogue, 1.0) == [], shown
    assert len(stage.several) >= 8
    for known, entry in stage.several:
        made = [{"id": place, **call} for place, call in enumerate(entry["calls"])]
        assert validate_calls(made, known) == []
        assert ungrounded(entry["query"], made, known, 1.0) == []


def test_results_nest_where_types_and_formats_fit() -> None:
    catalogue = calls().catalogue
    combined = tool_combinations(catalogue, 1)
    shapes = Counter((len(found.tools), len(found.links)) for found in combined)
    assert set(shapes) == {(2, 1), (3, 2), (2, 0)}
    assert len(set(shapes.values())) == 1 and shapes[2, 1] >= 80
    for found in combined:
        for place, argument, source in found.links:
            assert source < place
            assert fits(catalogue[found.tools[place]].arguments[argument], catalogue[found.tools[source]].returns)
    nested = {(*found.tools, found.links[0][1]) for found in combined if len(found.links) == 1}
    assert {("find_number", "call", "number"), ("sun_time", "set_alarm", "time")} <= nested
    assert tool_combinations(catalogue, 2) != combined


# --- the plan -----------------------------------------------------------------------------------------------------------


@given(
    single=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    combined=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    share=st.floats(0, 1),
    seed_rows=st.integers(0, 20),
)
def test_every_row_of_a_plan_is_another_one(
    single: list[int], combined: list[int], share: float, seed_rows: int
) -> None:
    plan = CallPlan(single, combined, share, seed_rows, 3)
    taken = [plan[row] for row in range(len(plan))]
    assert len(set(taken)) == len(taken)
    assert all(not row[0] for row in taken[:seed_rows])
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_the_plan_is_balanced_and_a_function_of_seed_and_row() -> None:
    stage = calls(seed_rows=200, complex_share=0.25)
    prompts = [stage.prompt(row) for row in range(600)]
    assert [calls(seed_rows=200, complex_share=0.25).prompt(row) for row in (7, 599)] == [prompts[7], prompts[599]]
    assert calls(seed=1).prompt(7) != prompts[7]
    modes = [prompt.seeds["mode"] for prompt in prompts]
    assert set(modes[:200]) == {"seed"} and modes[200:].count("complex") == 100
    picked = Counter(prompt.seeds["tools"][0] for prompt in prompts[:200])
    assert len(picked) == len(stage.catalogue) and max(picked.values()) - min(picked.values()) <= 1
    keys = {tuple(map(str, (p.seeds[name] for name in ("tools", "person", "situation", "style")))) for p in prompts}
    assert len(keys) == 600
    forms = Counter((prompt.seeds["form"], prompt.seeds["tools"][0]) for prompt in prompts[:200])
    assert max(Counter(form for form, _ in forms).values()) <= 200
    for form in FORMS:
        assert sum(count for (name, _), count in forms.items() if name == form) == 50
    assert len({form for form, tool in forms if tool == "set_alarm"}) > 1, "a tool must not keep to one form"


def test_more_rows_than_distinct_prompts_are_refused() -> None:
    small: dict[str, Any] = {"tools": ["set_wifi", "call"], "complex_share": 0.0, "seed_rows": 0}
    distinct = len(calls(**small).combinations)
    assert distinct == 2 * 40 * 40 * 8
    calls(rows=distinct, **small).check()
    with pytest.raises(RecipeError, match="25,600 distinct prompts"):
        calls(rows=distinct + 1, **small).check()


def test_a_prompt_shows_its_tool_and_two_examples() -> None:
    stage = calls()
    prompt = stage.prompt(3)
    (name,) = prompt.seeds["tools"]
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "user", "assistant", "user"]
    asked = prompt.messages[-1]["content"]
    assert f"Tool {name}: {stage.catalogue[name].description}" in asked
    for said in (prompt.seeds["person"], prompt.seeds["situation"], prompt.seeds["style"]):
        assert said in asked
    shown = [json.loads(message["content"]) for message in prompt.messages[1::2]]
    assert {entry["query"] for entry in shown} == {entry["query"] for entry in stage.catalogue[name].examples}
    assert name in prompt.seeds["listed"] and len(set(prompt.seeds["listed"])) == 4


def test_later_prompts_show_accepted_requests_of_the_wave_before() -> None:
    stage = calls(seed_rows=4, complex_share=0.5, examples=3)
    heard = [
        {"query": f"Wake me at {hour} am.", "calls": [{"name": "set_alarm", "arguments": {"time": f"{hour} am"}}]}
        for hour in range(1, 10)
    ]
    both = {"query": "Torch and Wi-Fi on.", "calls": [{"name": "set_flashlight", "arguments": {"on": True}}] * 2}
    stage.decisions = {"examples": [*heard, both]}
    assert {stage.prompt(row).seeds["mode"] for row in range(4)} == {"seed"}
    later = [stage.prompt(row) for row in range(4, 24)]
    assert Counter(prompt.seeds["mode"] for prompt in later) == {"self-instruct": 10, "complex": 10}
    for prompt in later:
        shown = [json.loads(message["content"]) for message in prompt.messages[1::2]]
        if prompt.seeds["mode"] == "complex":
            assert shown == [both]
        else:
            assert len(shown) == 3 and all(entry in heard for entry in shown)
    stage.decisions = {"examples": []}
    assert stage.prompt(4).seeds["mode"] in ("seed", "complex"), "a wave without an accepted row leaves nothing to show"


def test_what_is_learned_is_small_and_of_many_tools() -> None:
    stage = calls()
    names = list(stage.catalogue.tools)
    documents = [
        {
            "meta": {
                "query": f"Request number {number}",
                "answers": [
                    {"id": place, "name": names[(number + place) % len(names)], "arguments": {"x": "y" * 20}}
                    for place in range(1 + number % 2)
                ],
            }
        }
        for number in range(3000)
    ]
    learned = stage.learn(iter(documents))
    assert len(learned["examples"]) <= LEARNED_EXAMPLES and len(json.dumps(learned)) < 10_000
    assert len({entry["calls"][0]["name"] for entry in learned["examples"]}) > LEARNED_EXAMPLES / 2
    assert {len(entry["calls"]) for entry in learned["examples"]} == {1, 2}
    assert stage.learn(iter([])) == {"examples": []}


# --- replies ------------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(row=st.integers(0, 100_000), key=st.binary(min_size=4, max_size=4))
def test_whatever_the_schema_allows_passes_the_catalogue(row: int, key: bytes) -> None:
    stage = STAGE
    prompt = stage.prompt(row)
    text = example(prompt.schema, key)
    made = stage.parse(prompt, text).meta
    assert [call["name"] for call in made["answers"]] == prompt.seeds["tools"]
    for place, argument, source in prompt.seeds["links"]:
        assert made["answers"][place]["arguments"][argument] == f"#{source}"
    system, user, assistant = chat_of(json.dumps(made))
    assert (system["role"], user["content"]) == ("system", made["query"])
    assert parse_calls(assistant["content"], made["form"]) == made["answers"]
    assert canonical_calls(made["answers"], stage.catalogue) == made["answers"]
    names = [tool["name"] for tool in made["tools"]]
    assert set(prompt.seeds["tools"]) <= set(names) and len(names) == 4
    assert all(name in system["content"] for name in names)
    assert to_droidcall(json.loads(json.dumps(made)))["answers"] == made["answers"]


STAGE = calls(rows=200_000, grounded=0, seed_rows=100)


def prompt_for(stage: FunctionCalls, tool: str, *arguments: str) -> Prompt:
    for row in range(3000):
        prompt = stage.prompt(row)
        if prompt.seeds["tools"] == [tool] and prompt.seeds["arguments"] == [list(arguments)]:
            return prompt
    raise AssertionError(f"no row for {tool}")


def test_the_schema_asks_for_the_planned_call_and_nothing_else() -> None:
    prompt = prompt_for(STAGE, "set_volume", "percent")
    good: dict[str, Any] = {
        "query": "Volume to 30 percent.",
        "calls": [{"name": "set_volume", "arguments": {"percent": 30}}],
    }
    assert violation(json.dumps(good), prompt.schema) == ""
    for wrong in ("call", 3):
        other = {**good, "calls": [{"name": wrong, "arguments": {"percent": 30}}]}
        assert violation(json.dumps(other), prompt.schema)
    for arguments in ({}, {"percent": 101}, {"percent": "30"}, {"percent": 30, "sound": "alarm"}):
        assert violation(json.dumps({**good, "calls": [{"name": "set_volume", "arguments": arguments}]}), prompt.schema)
    assert violation(json.dumps({**good, "calls": good["calls"] * 2}), prompt.schema)
    assert violation(json.dumps({**good, "calls": []}), prompt.schema)


@pytest.mark.parametrize(
    ("query", "made", "reason"),
    [
        ("Wake me at 7 am.", [("set_alarm", {"time": "8 am"})], "ungrounded-argument"),
        ("Wake me at 7 am.", [("set_alarm", {"time": "7 am", "label": "gym"})], "ungrounded-argument"),
        ("Use set_alarm for 7 am.", [("set_alarm", {"time": "7 am"})], "names-tool"),
        ("Wake me at 7 am.", [("set_alarm", {"time": 7})], "wrong-type"),
        ("Wake me at 7 am.", [("set_alarm", {})], "missing-argument"),
        ("Wake me at 7 am.", [("set_alarm", {"time": "7 am", "tone": "birds"})], "unknown-argument"),
        ("Wake me at 7 am.", [("wake", {"time": "7 am"})], "unknown-tool"),
        ("Wake me at 7 am.", [("set_alarm", {"time": "7 am", "days": ["Moonday"]})], "not-in-enum"),
        ("Volume 300", [("set_volume", {"percent": 300})], "invalid-value"),
        ("Wake me at 7 am.", [("set_alarm", {"time": "#0"})], "forward-reference"),
        ("Wake me at 7 am.", [("set_alarm", {"time": "#5"})], "bad-reference"),
        ("Wake me at 7 am.", [], "malformed"),
        (",", [("list_alarms", {})], "no-request"),
        ("123456", [("open_settings", {"page": "network"})], "no-request"),
        ("Set {{time}}", [("set_alarm", {"time": "time"})], "no-request"),
        ("Call [Your Name].", [("call", {"number": "Your Name"})], "no-request"),
        ("   ", [("set_alarm", {"time": "7 am"})], "unparsable"),
        ("Wake me \ud800", [("set_alarm", {"time": "7 am"})], "unparsable"),
    ],
)
def test_replies_are_refused_with_a_reason(query: str, made: list[Any], reason: str) -> None:
    stage = calls()
    with pytest.raises(Refused) as caught:
        parsed(stage, stage.prompt(0), query, *made)
    assert caught.value.reason == reason


def test_a_request_that_repeats_its_manner_is_refused() -> None:
    stage = calls()
    prompt = next(found for row in range(64) if len((found := stage.prompt(row)).seeds["style"].split()) > 3)
    for request in (f"{prompt.seeds['style'].capitalize()}: torch on", f"Manner: {prompt.seeds['style']}"):
        with pytest.raises(Refused, match="copies-prompt"):
            parsed(stage, prompt, request, ("set_flashlight", {"on": True}))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "no", '{"query": 3, "calls": []}', '{"query": "a", "calls": [3]}', "[" * 9999]
)
def test_a_text_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="unparsable"):
        STAGE.parse(STAGE.prompt(0), text)


@pytest.mark.parametrize(
    ("query", "made", "loose"),
    [
        ("Ring 555-0123 on the LOUDSPEAKER", ("call", {"number": "555 0123", "speaker": True}), []),
        ("Timer, twelve minutes", ("start_timer", {"minutes": 12}), []),
        ("Timer, forty-five minutes", ("start_timer", {"minutes": 45}), []),
        ("Timer, forty minutes", ("start_timer", {"minutes": 45}), ["start_timer.minutes"]),
        ("Convert 3.5 cups into litres", ("convert_units", {"amount": 3.5, "unit": "cups", "into": "litres"}), []),
        ("Convert 3 cups into litres", ("convert_units", {"amount": 3.0, "unit": "cups", "into": "litres"}), []),
        ("What did Gran write?", ("read_messages", {"sender": "Gran", "count": 5}), []),
        ("What did Gran write?", ("read_messages", {"sender": "Gran", "count": 4}), ["read_messages.count"]),
        ("Buy eggs", ("add_to_list", {"items": ["eggs", "milk"]}), ["add_to_list.items"]),
        ("Every weekday at 6", ("set_alarm", {"time": "6", "days": ["Monday", "Friday"]}), []),
        ("Wake me", ("set_alarm", {"time": "?"}), ["set_alarm.time"]),
        ("Open the app of the bank", ("open_app", {"name": "app_of_the_bank"}), ["open_app.name"]),
    ],
)
def test_values_must_be_said(query: str, made: tuple[str, dict[str, Any]], loose: list[str]) -> None:
    records = [{"id": 0, "name": made[0], "arguments": made[1]}]
    assert ungrounded(query, records, STAGE.catalogue, 1.0) == loose
    assert ungrounded(query, records, STAGE.catalogue, 0.0) == []


def test_a_share_of_a_value_may_be_enough() -> None:
    records = [{"id": 0, "name": "send_text", "arguments": {"number": "555", "message": "I will be late today"}}]
    assert ungrounded("Tell 555 I am late", records, STAGE.catalogue, 0.4) == []
    assert ungrounded("Tell 555 I am late", records, STAGE.catalogue, 0.6) == ["send_text.message"]


def test_requests_too_like_earlier_ones_are_refused() -> None:
    stage = calls()
    sieve = stage.sieves()[0]
    assert sieve.reason == "similar-request"
    assert "Wake me at 6:45 am." in sieve.refuses("", {"query": "wake me at 6:45 am"}), "an example of the prompt"
    assert sieve.refuses("", {"query": "Order a cab to the opera at 9"}) == ""
    sieve.add("", {"query": "Order a cab to the opera at 9"})
    assert "ROUGE-L F 0.88" in sieve.refuses("", {"query": "Order a cab to the opera at 10"})
    assert sieve.refuses("", {"query": "Is there a cab?"}) == ""
    assert all(sieve.reason != "similar-request" for sieve in calls(most_similar=1).sieves())


# --- the whole ----------------------------------------------------------------------------------------------------------


def test_a_corpus_in_waves(stage_context: Any, ray_cluster: None) -> None:
    stage = calls(rows=96, wave_rows=32, part_rows=16, complex_share=0.5, grounded=0, forms=["code", "json_short"])
    artifact: Artifact = stage_context.finished(stage)
    counts = artifact.manifest.counts
    assert counts["planned"] == 96 == counts["rows"] + counts["rejected"]
    assert counts["rows"] > 48, artifact.manifest.reasons
    found = [row for table in artifact.tables() for row in table.to_pylist()]
    metas = [json.loads(row["meta"]) for row in found]
    modes = {meta["wave"]: set() for meta in metas}
    for meta in metas:
        modes[meta["wave"]].add(meta["mode"])
        assert validate_calls(meta["answers"], stage.catalogue) == []
    assert modes == {0: {"seed"}, 1: {"self-instruct", "complex"}, 2: {"self-instruct", "complex"}}
    assert {meta["form"] for meta in metas} == {"code", "json_short"}
    assert {row["kind"] for row in found} == {"chat"}
    first = {meta["query"] for meta in metas if meta["wave"] == 0}
    asked = [json.loads(row["made_by"]["prompt"]) for row, meta in zip(found, metas, strict=True) if meta["wave"] == 1]
    shown = {json.loads(turn["content"])["query"] for chat in asked for turn in chat if turn["role"] == "assistant"}
    assert len(shown & first) > 8


OWN = [
    {
        "name": name,
        "description": f"Do {name}.",
        "arguments": {"properties": {"what": {"type": "string"}}, "required": ["what"]},
        "returns": {"type": "string"},
    }
    for name in ("mow", "rake", "water")
]


def own_recipe(folder: Path, catalogue: Any = OWN, /, **values: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "garden.json").write_text(catalogue if isinstance(catalogue, str) else json.dumps(catalogue))
    stage = {"kind": "function-calls", "rows": 8, "engine": {"kind": "echo"}, "catalogue": "garden.json", **values}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "own", "stages": {"calls": stage}}))
    return load_recipe(str(folder / "recipe.yaml"))


def folder(recipe: Recipe, store: Store) -> str:
    artifact = plan_recipe(recipe, store)["calls"].artifact
    assert artifact is not None
    return artifact.folder


def test_a_catalogue_of_ones_own_is_what_it_says_and_not_where_it_lies(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    first = own_recipe(tmp_path / "a")
    stage = first.stages["calls"].stage
    assert isinstance(stage, FunctionCalls) and list(stage.catalogue.tools) == ["mow", "rake", "water"]
    planned = folder(first, store)
    assert folder(own_recipe(tmp_path / "b"), store) == planned
    other = json.loads(json.dumps(OWN))
    other[0]["description"] = "Cut the grass."
    assert folder(own_recipe(tmp_path / "b", other), store) != planned


def test_a_catalogue_travels_with_the_stage(tmp_path: Path) -> None:
    stage = own_recipe(tmp_path).stages["calls"].stage
    assert isinstance(stage, FunctionCalls)
    expected = stage.prompt(5)
    carried = pickle.dumps(stage)
    (tmp_path / "garden.json").unlink()
    assert pickle.loads(carried).prompt(5) == expected


def test_a_job_takes_the_catalogue_along(tmp_path: Path) -> None:
    own_recipe(tmp_path)
    with staged_code(tmp_path / "recipe.yaml") as (folder, recipe):
        first = code_digest(folder)
        assert len(load_recipe(str(folder / recipe)).stages["calls"].stage.catalogue) == 3  # type: ignore[attr-defined]
    own_recipe(tmp_path, OWN[:2])
    (tmp_path / "two.json").write_text(json.dumps(OWN))
    with staged_code(tmp_path / "recipe.yaml", ["stages.calls.catalogue=two.json"]) as (folder, _):
        assert code_digest(folder) != first and (folder / "recipes" / "two.json").is_file()


@pytest.mark.parametrize(
    ("tools", "values", "said"),
    [
        ([{**OWN[0], "arguments": {"properties": {"what": {"type": "strin"}}}}], {}, "garden.json: tool 0 (mow)"),
        ([OWN[0], OWN[0]], {}, "tool 1 (mow): a second tool of this name"),
        ("[", {}, "garden.json is not JSON"),
        (OWN, {"catalogue": "gardn.json"}, "stages.calls.catalogue: there is no file gardn.json"),
        (OWN, {"tools": ["mow", "rak"]}, "stages.calls.tools: no tool 'rak' (did you mean 'rake'?)"),
        (OWN[:1], {}, "a single tool cannot be combined"),
    ],
)
def test_a_wrong_catalogue_is_refused_before_anything_runs(
    tmp_path: Path, tools: Any, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        own_recipe(tmp_path, tools, **values)
    assert said in caught.value.message


def test_the_recipe_that_ships_is_right_and_the_page_shows_its_prompt() -> None:
    page = (ROOT / "docs" / "generators" / "function_calls.md").read_text(encoding="utf-8")
    stage = load_recipe(str(ROOT / "recipes" / "function-calls.yaml")).stages["calls"].stage
    assert isinstance(stage, FunctionCalls)
    assert stage.prompt(110).messages[-1]["content"] in page
    assert f"{len(calls().combinations):,} distinct prompts" in page


def test_the_pages_catalogue_and_forms_are_right(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "generators" / "function_calls.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    own_recipe(tmp_path, shown, complex_share=0)
    stage = calls()
    made = [
        {"id": 0, "name": "find_number", "arguments": {"name": "Ann"}},
        {"id": 1, "name": "call", "arguments": {"number": "#0"}},
    ]
    for form in FORMS:
        for line in render_calls(made, form, stage.catalogue).split("\n"):
            assert f"`{line}`" in page
