"""Artifacts: both spellings, what is filled in, what is refused and where, and what it costs."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.artifacts import ArtifactToolCall, ToolCallNode, build_call_tree, complete_tool_calls, parse_artifact
from domain.artifacts.calls import MAX_CALL_DEPTH
from domain.artifacts.determinism import FACTOR_WEIGHTS, level_from_score
from domain.artifacts.search_text import MAX_SEARCH_WORDS, MAX_WORD_CHARACTERS, build_search_query
from domain.shared import ids
from tests.support.sample_artifacts import NOW, body, fields, record

KURRAL = Path(__file__).parents[1] / "journeys" / "kurral_artifact.json"


def test_what_the_real_client_writes_is_kept_whole() -> None:
    sent = json.loads(KURRAL.read_bytes())
    made = record(KURRAL.read_bytes())
    kept = json.loads(made.body)
    for name in sent.keys() - {"created_at", "tool_calls", "time_env"}:
        assert kept[name] == sent[name], name
    assert kept["created_at"] == sent["created_at"] + "Z"
    for before, after in zip(sent["tool_calls"], kept["tool_calls"], strict=True):
        assert after == before | {name: after[name] for name in ("start_time", "end_time", "timestamp")}
    assert kept["tool_calls"][0]["end_time"] == "2026-11-20T09:30:00.164456Z"
    meta = made.metadata
    assert (meta.tenant_id, meta.labelled_tenant, meta.user_id) == ("tenant-1", "acme", "user-1")
    assert (meta.replay_level, meta.deterministic, meta.determinism_score) == ("A", True, 1.0)
    assert (meta.prompt_tokens, meta.completion_tokens, meta.total_tokens) == (120, 30, 150)
    assert (meta.model_name, meta.provider, meta.environment) == ("gpt-4-0613", "openai", "staging")
    assert (meta.tags, meta.graph_hash, meta.cost_usd) == (["team:support"], "sha256:abc", 0.0021)
    assert (meta.tool_calls, meta.tool_errors, meta.size_bytes) == (2, 0, len(made.body))
    assert ids.decode_id("art", meta.id) is not None


def test_bare_wrapped_and_spaced_are_the_same_artifact() -> None:
    text = KURRAL.read_bytes()
    bare = record(text)
    for other in (b'{"artifact_data":' + text + b"}", json.dumps(json.loads(text), ensure_ascii=False).encode()):
        assert record(other).fingerprint == bare.fingerprint
        assert record(other).body == bare.body
    assert record({"inputs": 1}).fingerprint == record({"inputs": 1}).fingerprint
    assert record({"inputs": 1}).fingerprint != record({"inputs": 2}).fingerprint


def test_an_empty_artifact_gets_everything() -> None:
    kept, meta = body({}), record({}).metadata
    assert kept["run_id"] == kept["kurral_id"]
    assert (kept["environment"], kept["schema_version"], kept["tenant_id"]) == ("production", "1.0.0", "tenant-1")
    assert (kept["tool_calls"], kept["semantic_buckets"], kept["deterministic"]) == ([], [], False)
    assert kept["created_at"] == "2026-11-21T12:00:00Z"
    assert "token_usage" not in kept
    assert meta.created_at == meta.received_at == NOW
    assert (meta.total_tokens, meta.cost_usd, meta.duration_ms, meta.labelled_tenant) == (None, None, None, None)


def test_a_kept_body_is_an_artifact_again() -> None:
    made = record({"tool_calls": [{"tool_name": "a"}, {"parent_id": None}], "error": "boom"})
    assert record(made.body).body == made.body


def test_both_spellings_of_tokens() -> None:
    for usage, wanted in [
        ({"prompt": 1, "completion": 2}, (1, 2, 3)),
        ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 0}, (1, 2, 3)),
        ({"prompt": 1, "prompt_tokens": 1, "total": 9}, (1, None, 9)),
        ({"cached": 5, "cached_tokens": 5}, (None, None, None)),
    ]:
        made = record({"token_usage": usage}).metadata
        assert (made.prompt_tokens, made.completion_tokens, made.total_tokens) == wanted
        assert body({"token_usage": usage})["token_usage"] == usage
    assert fields({"token_usage": {"audio": 1, "audio_tokens": 2}}) == ["token_usage.audio"]
    assert record({"token_usage": {"estimated_cost_usd": 0.5}}).metadata.cost_usd == 0.5
    assert record({"cost_usd": 0, "token_usage": {"estimated_cost_usd": 0.5}}).metadata.cost_usd == 0


def test_errors_as_text_and_as_object() -> None:
    text = record({"error": "boom"})
    assert (text.metadata.status, text.metadata.error_type, text.metadata.error_message) == ("error", None, "boom")
    assert json.loads(text.body)["error"] == "boom"
    whole = record({"error": {"type": "ValueError", "message": "a\0b" + "é" * 5000, "stack": "line 1"}})
    assert whole.metadata.error_type == "ValueError"
    assert whole.metadata.error_message is not None
    assert len(whole.metadata.error_message.encode()) <= 4096
    assert whole.metadata.error_message.startswith("a\ufffdb")
    assert whole.failures.endswith("line 1")
    for nothing in (None, "", {}, {"message": None}):
        assert record({"error": nothing}).metadata.status == "ok"


def test_failures_of_tool_calls_can_be_searched() -> None:
    calls = [
        {"error_text": "no\0route", "error_type": "ConnectTimeout", "stack": "here"},
        {"error_flag": True},
        {"status": "ok", "error": "legacy", "error_stack": "there"},
        {"status": "timeout"},
        {},
    ]
    made = record({"tool_calls": calls})
    assert made.failures == "ConnectTimeout no route here legacy there"
    assert made.metadata.tool_errors == 4
    assert made.metadata.status == "ok"
    kept = [call["status"] for call in json.loads(made.body)["tool_calls"]]
    assert kept == ["timeout", "error", "ok", "timeout", "ok"]
    assert record({"tool_calls": [{"error": "é" * 50_000}] * 9}).failures.split() == ["é" * MAX_WORD_CHARACTERS] * 9
    assert len(record({"tool_calls": [{"error": "no way " * 50_000}] * 9}).failures.split()) == MAX_SEARCH_WORDS


def test_tags_and_buckets() -> None:
    assert record({"tags": ["b", "a", "b"]}).metadata.tags == ["b", "a"]
    assert record({"tags": {"k": "v"}}).metadata.tags == ["k:v"]
    assert record({"semantic_buckets": ["b", "a", "b"]}).metadata.semantic_buckets == ["a", "b"]
    assert body({"semantic_buckets": ["b", "a", "b"]})["semantic_buckets"] == ["b", "a", "b"]


def test_free_values_stay_as_they_are() -> None:
    free = b'{"n":1e999,"big":123456789012345678901234567890,"x":[1.0,null,"\\u00e9\xc3\xa9"]}'
    for name in ("inputs", "outputs", "metadata", "governance", "replay_evidence", "data_snapshots", "extensions"):
        assert b'"%s":%s' % (name.encode(), free) in record(b'{"%s":%s}' % (name.encode(), free)).body
    kept = body({"llm_config": {"parameters": {"seed": 1, "own": [1]}}, "inputs": None})
    assert kept["llm_config"]["parameters"] == {"seed": 1, "own": [1]}
    assert kept["inputs"] is None


# --- determinism


FULL: dict[str, Any] = {
    "llm_config": {"model_name": "m", "model_version": "v", "parameters": {"temperature": 0, "seed": 1}},
    "resolved_prompt": {"template": "t", "variables": {"a": 1}, "final_text": "f"},
    "time_env": {"environment_vars": {"A": "b"}},
}


def config(**more: Any) -> dict[str, Any]:
    return FULL | {"llm_config": FULL["llm_config"] | more}


@pytest.mark.parametrize(
    ("sent", "score", "level"),
    [
        (FULL, 1.0, "A"),
        ({}, 0.15 + 0.03 + 0.05, "C"),
        (config(parameters={"temperature": 0, "seed": 1}) | {"time_env": None, "resolved_prompt": {"template": "t", "final_text": "f"}}, 0.85, "B"),
        (FULL | {"tool_calls": [{"cache_key": "k"}, {"cache_key": "k"}, {}]}, 0.95, "A"),
        (FULL | {"tool_calls": [{"cache_key": "k"}, {"cache_key": "k", "error_text": "x"}, {}]}, 0.9, "A"),
        (FULL | {"tool_calls": [{}], "resolved_prompt": {}, "time_env": None, "llm_config": {"model_version": "v", "parameters": {"seed": 1}}}, 0.53, "B"),
        (FULL | {"llm_config": {"parameters": {"temperature": 0}}, "tool_calls": [{}], "resolved_prompt": {}}, 0.2, "C"),
        (FULL | {"llm_config": {"parameters": {"temperature": 0}}}, 0.55, "B"),
        (FULL | {"llm_config": {"parameters": {}}}, 0.5, "B"),
        (FULL | {"llm_config": {"parameters": {"top_p": 0.95}}}, 0.49, "C"),
        (config(model_version=None, model_name="gpt-4-0613"), 0.95, "A"),
        (config(model_version=None), 0.825, "B"),
        (config(parameters={"temperature": 0.2, "top_p": 0.5, "seed": 0, "presence_penalty": 1}), 0.94, "A"),
        (config(parameters={"temperature": 0.69, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0.0}), 0.76, "B"),
        (config(parameters={"temperature": 1.5, "seed": -1}), 0.95, "A"),
    ],
)  # fmt: skip
def test_scores_by_hand(sent: Any, score: float, level: str) -> None:
    made = record(sent)
    assert made.metadata.determinism_score == pytest.approx(score, abs=1e-9)
    assert made.metadata.replay_level == level
    assert made.metadata.deterministic is (level == "A")
    report = json.loads(made.body)["determinism_report"]
    assert sum(FACTOR_WEIGHTS[name] * value for name, value in report["breakdown"].items()) == pytest.approx(
        score, abs=1e-6
    )


def test_levels_at_their_bounds() -> None:
    assert [level_from_score(score) for score in (1.0, 0.9, 0.899999, 0.5, 0.499999, 0.0)] == [
        "A",
        "A",
        "B",
        "B",
        "C",
        "C",
    ]
    for score, level in [(0.9, "A"), (0.89, "B"), (0.5, "B"), (0.49, "C")]:
        meta = record({"determinism_report": {"overall_score": score}}).metadata
        assert (meta.replay_level, meta.determinism_score) == (level, score)


def test_what_was_sent_is_kept_even_if_it_contradicts() -> None:
    sent = {
        "replay_level": "C",
        "deterministic": True,
        "determinism_report": {"overall_score": 0.95, "warnings": ["w"]},
    }
    kept, meta = body(sent), record(sent).metadata
    assert (meta.replay_level, meta.deterministic, meta.determinism_score) == ("C", True, 0.95)
    assert {name: kept[name] for name in sent} == sent
    assert body({"determinism_report": {"warnings": ["w"]}})["determinism_report"] == {
        "overall_score": 0.23,
        "warnings": ["w"],
    }


def test_newer_clients_do_not_get_a_level_they_cannot_load() -> None:
    assert "replay_level" not in body({"deterministic": False})
    assert record({"deterministic": False}).metadata.replay_level == "C"
    assert body(FULL | {"deterministic": False})["replay_level"] == "A"
    assert body({})["replay_level"] == "C"


# --- tool calls


def test_calls_are_completed() -> None:
    start = "2026-01-01T00:00:00"
    calls = body(
        {
            "tool_calls": [
                {"id": "call_1", "start_time": start, "latency_ms": 1.5},
                {"start_time": start, "end_time": "2026-01-01T01:00:02.0019+01:00"},
                {"timestamp": start, "duration_ms": 7, "tool_name": "t"},
                {"type": "retrieval"},
            ]
        }
    )["tool_calls"]
    assert [call["id"] for call in calls] == ["call_1", "call_2", "call_3", "call_4"]
    assert calls[0]["end_time"] == "2026-01-01T00:00:00.001500Z"
    assert (calls[1]["latency_ms"], calls[1]["end_time"]) == (2001, "2026-01-01T00:00:02.001900Z")
    assert (calls[2]["latency_ms"], calls[2]["start_time"]) == (7, start + "Z")
    assert [call["tool_name"] for call in calls] == ["tool", "tool", "t", "retrieval"]


@pytest.mark.parametrize(
    ("calls", "place"),
    [
        ([{"id": "a"}, {"id": "a"}], "tool_calls[1].id"),
        ([{"id": "a" * 201}], "tool_calls[0].id"),
        ([{"id": "a"}, {"parent_id": "b"}], "tool_calls[1].parent_id"),
        ([{"id": "a", "parent_id": "a"}], "tool_calls[0].parent_id"),
        ([{}, {"start_time": "2026-01-01T00:00:01Z", "end_time": "2026-01-01T00:00:00Z"}], "tool_calls[1].end_time"),
        ([{"start_time": "0001-01-01T00:00:00+14:00"}], "tool_calls[0].start_time"),
        ([{"end_time": "9999-12-31T23:00:00-14:00"}], "tool_calls[0].end_time"),
        ([{"timestamp": "0001-01-01T00:00:00+14:00"}], "tool_calls[0].timestamp"),
        ([{"start_time": "9999-12-31T23:00:00Z", "latency_ms": 1e12}], "tool_calls[0].latency_ms"),
        ([{}, {"latency_ms": "1"}], "tool_calls[1].latency_ms"),
        ([{"latency_ms": -1}], "tool_calls[0].latency_ms"),
        ([{"latency_ms": 1e13}], "tool_calls[0].latency_ms"),
        ([{"status": "late"}], "tool_calls[0].status"),
        ([{"effect_type": "war"}], "tool_calls[0].effect_type"),
        ([{}, {"nme": 1}], "tool_calls[1].nme"),
    ],
)
def test_bad_calls_are_named(calls: Any, place: str) -> None:
    assert fields({"tool_calls": calls})[0] == place
    assert fields({"artifact_data": {"tool_calls": calls}})[0] == place


@given(st.lists(st.integers(0, 1_000_000), max_size=60), st.randoms(use_true_random=False))
def test_a_tree_holds_each_call_once_under_its_parent(picks: list[int], order: Any) -> None:
    sent = [
        ArtifactToolCall(
            id=str(place), parent_id=None if place == 0 or pick % (place + 1) == place else str(pick % place)
        )
        for place, pick in enumerate(picks)
    ]
    order.shuffle(sent)
    calls, found = complete_tool_calls(sent)
    assert not found
    seen: list[str | None] = []
    open_nodes: list[tuple[str | None, ToolCallNode]] = [(None, root) for root in build_call_tree(calls)]
    while open_nodes:
        parent, node = open_nodes.pop()
        assert node.call.parent_id == parent
        seen.append(node.call.id)
        open_nodes.extend((node.call.id, child) for child in node.children)
    assert sorted(map(str, seen)) == sorted(str(call.id) for call in sent)


@given(st.lists(st.integers(0, 39), min_size=40, max_size=40))
def test_circles_are_refused_and_named(parents: list[int]) -> None:
    # Everybody has a parent, so that every walk upwards ends in a circle.
    sent = [ArtifactToolCall(id=str(place), parent_id=str(parent)) for place, parent in enumerate(parents)]
    circles = set()
    for place in range(40):
        for _ in range(40):
            place = parents[place]
        circle = {place}
        while (place := parents[place]) not in circle:
            circle.add(place)
        circles.add(frozenset(circle))
    named = [int(one.field.removeprefix("tool_calls[").split("]")[0]) for one in complete_tool_calls(sent)[1]]
    assert len(named) == len(circles)
    assert {circle for circle in circles for place in named if place in circle} == circles


def chain(length: int) -> list[dict[str, Any]]:
    return [{"id": "0"}, *({"id": str(place), "parent_id": str(place - 1)} for place in range(1, length))]


def test_long_chains_are_refused_before_anything_recurses() -> None:
    whole = record({"tool_calls": chain(MAX_CALL_DEPTH)})
    assert msgspec.json.encode(build_call_tree(parse_artifact(whole.body).tool_calls or []))
    assert fields({"tool_calls": chain(MAX_CALL_DEPTH + 1)}) == [f"tool_calls[{MAX_CALL_DEPTH}].parent_id"]
    assert fields({"tool_calls": chain(10_000)}) == [f"tool_calls[{MAX_CALL_DEPTH}].parent_id"]
    ring = [*chain(10_000)[1:], {"id": "0", "parent_id": "9999"}]
    assert len(fields({"tool_calls": ring})) == 1


def test_ten_thousand_calls_and_no_more() -> None:
    assert record({"tool_calls": [{}] * 10_000}).metadata.tool_calls == 10_000
    assert fields({"tool_calls": [{}] * 10_001}) == ["tool_calls"]


@pytest.mark.parametrize(
    ("asked", "understood"),
    [
        ("payment refused", "payment refused"),
        ("pay.py", '"pay py"'),
        ('"no route" -timeout or dns', '"no route" -"timeout" or dns'),
        ("-" * 100, ""),
        ("~/" * 5000, ""),
        ('"', ""),
        ("-a.b/c", '-"a b c"'),
        ("x" * 500, "x" * MAX_WORD_CHARACTERS),
    ],
)
def test_what_a_search_asks_for(asked: str, understood: str) -> None:
    assert build_search_query(asked) == understood


def test_a_search_has_so_many_terms_and_no_more() -> None:
    assert len(build_search_query("a " * 10_000).split()) == 32
