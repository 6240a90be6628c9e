"""Test parsing of artifacts: both spellings of fields, computed fields, refused fields, and search text."""

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
from domain.shared import ids
from domain.shared.search_text import MAX_SEARCH_WORDS, MAX_WORD_CHARACTERS, build_search_query
from tests.support.sample_artifacts import NOW, build_sample, list_refused_fields, read_stored_body

KURRAL_ARTIFACT_FILE = Path(__file__).parents[1] / "journeys" / "kurral_artifact.json"


def test_kurral_client_artifact_is_stored_unchanged() -> None:
    sent = json.loads(KURRAL_ARTIFACT_FILE.read_bytes())
    artifact_record = build_sample(KURRAL_ARTIFACT_FILE.read_bytes())
    stored = json.loads(artifact_record.body)
    for name in sent.keys() - {"created_at", "tool_calls", "time_env"}:
        assert stored[name] == sent[name], name
    assert stored["created_at"] == sent["created_at"] + "Z"
    for before, after in zip(sent["tool_calls"], stored["tool_calls"], strict=True):
        assert after == before | {name: after[name] for name in ("start_time", "end_time", "timestamp")}
    assert stored["tool_calls"][0]["end_time"] == "2026-11-20T09:30:00.164456Z"
    meta = artifact_record.metadata
    assert (meta.tenant_id, meta.labelled_tenant, meta.user_id) == ("tenant-1", "acme", "user-1")
    assert (meta.replay_level, meta.deterministic, meta.determinism_score) == ("A", True, 1.0)
    assert (meta.prompt_tokens, meta.completion_tokens, meta.total_tokens) == (120, 30, 150)
    assert (meta.model_name, meta.provider, meta.environment) == ("gpt-4-0613", "openai", "staging")
    assert (meta.tags, meta.graph_hash, meta.cost_usd) == (["team:support"], "sha256:abc", 0.0021)
    assert (meta.tool_calls, meta.tool_errors, meta.size_bytes) == (2, 0, len(artifact_record.body))
    assert ids.decode_id("art", meta.id) is not None


def test_wrapping_and_whitespace_do_not_change_the_fingerprint() -> None:
    text = KURRAL_ARTIFACT_FILE.read_bytes()
    bare = build_sample(text)
    for other in (b'{"artifact_data":' + text + b"}", json.dumps(json.loads(text), ensure_ascii=False).encode()):
        assert build_sample(other).fingerprint == bare.fingerprint
        assert build_sample(other).body == bare.body
    assert build_sample({"inputs": 1}).fingerprint == build_sample({"inputs": 1}).fingerprint
    assert build_sample({"inputs": 1}).fingerprint != build_sample({"inputs": 2}).fingerprint


def test_empty_artifact_gets_default_values() -> None:
    stored, meta = read_stored_body({}), build_sample({}).metadata
    assert stored["run_id"] == stored["kurral_id"]
    assert (stored["environment"], stored["schema_version"], stored["tenant_id"]) == ("production", "1.0.0", "tenant-1")
    assert (stored["tool_calls"], stored["semantic_buckets"], stored["deterministic"]) == ([], [], False)
    assert stored["created_at"] == "2026-11-21T12:00:00Z"
    assert "token_usage" not in stored
    assert meta.created_at == meta.received_at == NOW
    assert (meta.total_tokens, meta.cost_usd, meta.duration_ms, meta.labelled_tenant) == (None, None, None, None)


def test_stored_body_parses_to_itself() -> None:
    artifact_record = build_sample({"tool_calls": [{"tool_name": "a"}, {"parent_id": None}], "error": "boom"})
    assert build_sample(artifact_record.body).body == artifact_record.body


def test_token_usage_accepts_both_spellings() -> None:
    for usage, expected in [
        ({"prompt": 1, "completion": 2}, (1, 2, 3)),
        ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 0}, (1, 2, 3)),
        ({"prompt": 1, "prompt_tokens": 1, "total": 9}, (1, None, 9)),
        ({"cached": 5, "cached_tokens": 5}, (None, None, None)),
    ]:
        artifact_record = build_sample({"token_usage": usage}).metadata
        assert (
            artifact_record.prompt_tokens,
            artifact_record.completion_tokens,
            artifact_record.total_tokens,
        ) == expected
        assert read_stored_body({"token_usage": usage})["token_usage"] == usage
    assert list_refused_fields({"token_usage": {"audio": 1, "audio_tokens": 2}}) == ["token_usage.audio"]
    assert build_sample({"token_usage": {"estimated_cost_usd": 0.5}}).metadata.cost_usd == 0.5
    assert build_sample({"cost_usd": 0, "token_usage": {"estimated_cost_usd": 0.5}}).metadata.cost_usd == 0


def test_error_is_accepted_as_text_or_object() -> None:
    text = build_sample({"error": "boom"})
    assert (text.metadata.status, text.metadata.error_type, text.metadata.error_message) == ("error", None, "boom")
    assert json.loads(text.body)["error"] == "boom"
    whole = build_sample({"error": {"type": "ValueError", "message": "a\0b" + "é" * 5000, "stack": "line 1"}})
    assert whole.metadata.error_type == "ValueError"
    assert whole.metadata.error_message is not None
    assert len(whole.metadata.error_message.encode()) <= 4096
    assert whole.metadata.error_message.startswith("a\ufffdb")
    assert whole.failures.endswith("line 1")
    for nothing in (None, "", {}, {"message": None}):
        assert build_sample({"error": nothing}).metadata.status == "ok"


def test_failed_tool_calls_are_counted_and_searchable() -> None:
    calls = [
        {"error_text": "no\0route", "error_type": "ConnectTimeout", "stack": "here"},
        {"error_flag": True},
        {"status": "ok", "error": "legacy", "error_stack": "there"},
        {"status": "timeout"},
        {},
    ]
    artifact_record = build_sample({"tool_calls": calls})
    assert artifact_record.failures == "ConnectTimeout no route here legacy there"
    assert artifact_record.metadata.tool_errors == 4
    assert artifact_record.metadata.status == "ok"
    statuses = [call["status"] for call in json.loads(artifact_record.body)["tool_calls"]]
    assert statuses == ["timeout", "error", "ok", "timeout", "ok"]
    assert (
        build_sample({"tool_calls": [{"error": "é" * 50_000}] * 9}).failures.split() == ["é" * MAX_WORD_CHARACTERS] * 9
    )
    assert len(build_sample({"tool_calls": [{"error": "no way " * 50_000}] * 9}).failures.split()) == MAX_SEARCH_WORDS


def test_tags_and_buckets_are_deduplicated_in_metadata() -> None:
    assert build_sample({"tags": ["b", "a", "b"]}).metadata.tags == ["b", "a"]
    assert build_sample({"tags": {"k": "v"}}).metadata.tags == ["k:v"]
    assert build_sample({"semantic_buckets": ["b", "a", "b"]}).metadata.semantic_buckets == ["a", "b"]
    assert read_stored_body({"semantic_buckets": ["b", "a", "b"]})["semantic_buckets"] == ["b", "a", "b"]


def test_free_form_values_are_stored_byte_for_byte() -> None:
    raw_value = b'{"n":1e999,"big":123456789012345678901234567890,"x":[1.0,null,"\\u00e9\xc3\xa9"]}'
    for name in ("inputs", "outputs", "metadata", "governance", "replay_evidence", "data_snapshots", "extensions"):
        assert b'"%s":%s' % (name.encode(), raw_value) in build_sample(b'{"%s":%s}' % (name.encode(), raw_value)).body
    stored = read_stored_body({"llm_config": {"parameters": {"seed": 1, "own": [1]}}, "inputs": None})
    assert stored["llm_config"]["parameters"] == {"seed": 1, "own": [1]}
    assert stored["inputs"] is None


# --- determinism


DETERMINISTIC_ARTIFACT: dict[str, Any] = {
    "llm_config": {"model_name": "m", "model_version": "v", "parameters": {"temperature": 0, "seed": 1}},
    "resolved_prompt": {"template": "t", "variables": {"a": 1}, "final_text": "f"},
    "time_env": {"environment_vars": {"A": "b"}},
}


def build_artifact(**more: Any) -> dict[str, Any]:
    return DETERMINISTIC_ARTIFACT | {"llm_config": DETERMINISTIC_ARTIFACT["llm_config"] | more}


@pytest.mark.parametrize(
    ("sent", "score", "level"),
    [
        (DETERMINISTIC_ARTIFACT, 1.0, "A"),
        ({}, 0.15 + 0.03 + 0.05, "C"),
        (build_artifact(parameters={"temperature": 0, "seed": 1}) | {"time_env": None, "resolved_prompt": {"template": "t", "final_text": "f"}}, 0.85, "B"),
        (DETERMINISTIC_ARTIFACT | {"tool_calls": [{"cache_key": "k"}, {"cache_key": "k"}, {}]}, 0.95, "A"),
        (DETERMINISTIC_ARTIFACT | {"tool_calls": [{"cache_key": "k"}, {"cache_key": "k", "error_text": "x"}, {}]}, 0.9, "A"),
        (DETERMINISTIC_ARTIFACT | {"tool_calls": [{}], "resolved_prompt": {}, "time_env": None, "llm_config": {"model_version": "v", "parameters": {"seed": 1}}}, 0.53, "B"),
        (DETERMINISTIC_ARTIFACT | {"llm_config": {"parameters": {"temperature": 0}}, "tool_calls": [{}], "resolved_prompt": {}}, 0.2, "C"),
        (DETERMINISTIC_ARTIFACT | {"llm_config": {"parameters": {"temperature": 0}}}, 0.55, "B"),
        (DETERMINISTIC_ARTIFACT | {"llm_config": {"parameters": {}}}, 0.5, "B"),
        (DETERMINISTIC_ARTIFACT | {"llm_config": {"parameters": {"top_p": 0.95}}}, 0.49, "C"),
        (build_artifact(model_version=None, model_name="gpt-4-0613"), 0.95, "A"),
        (build_artifact(model_version=None), 0.825, "B"),
        (build_artifact(parameters={"temperature": 0.2, "top_p": 0.5, "seed": 0, "presence_penalty": 1}), 0.94, "A"),
        (build_artifact(parameters={"temperature": 0.69, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0.0}), 0.76, "B"),
        (build_artifact(parameters={"temperature": 1.5, "seed": -1}), 0.95, "A"),
    ],
)  # fmt: skip
def test_determinism_score_matches_hand_computed_values(sent: Any, score: float, level: str) -> None:
    artifact_record = build_sample(sent)
    assert artifact_record.metadata.determinism_score == pytest.approx(score, abs=1e-9)
    assert artifact_record.metadata.replay_level == level
    assert artifact_record.metadata.deterministic is (level == "A")
    report = json.loads(artifact_record.body)["determinism_report"]
    assert sum(FACTOR_WEIGHTS[name] * value for name, value in report["breakdown"].items()) == pytest.approx(
        score, abs=1e-6
    )


def test_replay_level_changes_at_its_bounds() -> None:
    assert [level_from_score(score) for score in (1.0, 0.9, 0.899999, 0.5, 0.499999, 0.0)] == [
        "A",
        "A",
        "B",
        "B",
        "C",
        "C",
    ]
    for score, level in [(0.9, "A"), (0.89, "B"), (0.5, "B"), (0.49, "C")]:
        meta = build_sample({"determinism_report": {"overall_score": score}}).metadata
        assert (meta.replay_level, meta.determinism_score) == (level, score)


def test_sent_determinism_fields_are_kept_even_if_inconsistent() -> None:
    sent = {
        "replay_level": "C",
        "deterministic": True,
        "determinism_report": {"overall_score": 0.95, "warnings": ["w"]},
    }
    stored, meta = read_stored_body(sent), build_sample(sent).metadata
    assert (meta.replay_level, meta.deterministic, meta.determinism_score) == ("C", True, 0.95)
    assert {name: stored[name] for name in sent} == sent
    assert read_stored_body({"determinism_report": {"warnings": ["w"]}})["determinism_report"] == {
        "overall_score": 0.23,
        "warnings": ["w"],
    }


def test_replay_level_is_omitted_where_newer_clients_reject_it() -> None:
    assert "replay_level" not in read_stored_body({"deterministic": False})
    assert build_sample({"deterministic": False}).metadata.replay_level == "C"
    assert read_stored_body(DETERMINISTIC_ARTIFACT | {"deterministic": False})["replay_level"] == "A"
    assert read_stored_body({})["replay_level"] == "C"


# --- tool calls


def test_tool_calls_get_missing_ids_names_and_times() -> None:
    start = "2026-01-01T00:00:00"
    calls = read_stored_body(
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
def test_invalid_tool_calls_are_refused_by_field(calls: Any, place: str) -> None:
    assert list_refused_fields({"tool_calls": calls})[0] == place
    assert list_refused_fields({"artifact_data": {"tool_calls": calls}})[0] == place


@given(st.lists(st.integers(0, 1_000_000), max_size=60), st.randoms(use_true_random=False))
def test_call_tree_holds_each_call_once_under_its_parent(picks: list[int], order: Any) -> None:
    sent = [
        ArtifactToolCall(
            id=str(place), parent_id=None if place == 0 or pick % (place + 1) == place else str(pick % place)
        )
        for place, pick in enumerate(picks)
    ]
    order.shuffle(sent)
    calls, problems = complete_tool_calls(sent)
    assert not problems
    seen: list[str | None] = []
    open_nodes: list[tuple[str | None, ToolCallNode]] = [(None, root) for root in build_call_tree(calls)]
    while open_nodes:
        parent, node = open_nodes.pop()
        assert node.call.parent_id == parent
        seen.append(node.call.id)
        open_nodes.extend((node.call.id, child) for child in node.children)
    assert sorted(map(str, seen)) == sorted(str(call.id) for call in sent)


@given(st.lists(st.integers(0, 39), min_size=40, max_size=40))
def test_each_cycle_of_calls_is_reported_once(parents: list[int]) -> None:
    # Every call has a parent, so every walk upwards ends in a cycle.
    sent = [ArtifactToolCall(id=str(index), parent_id=str(parent)) for index, parent in enumerate(parents)]
    cycles = set()
    for index in range(40):
        for _ in range(40):
            index = parents[index]
        cycle = {index}
        while (index := parents[index]) not in cycle:
            cycle.add(index)
        cycles.add(frozenset(cycle))
    named = [int(problem.field.removeprefix("tool_calls[").split("]")[0]) for problem in complete_tool_calls(sent)[1]]
    assert len(named) == len(cycles)
    assert {cycle for cycle in cycles for index in named if index in cycle} == cycles


def build_call_chain(length: int) -> list[dict[str, Any]]:
    return [{"id": "0"}, *({"id": str(place), "parent_id": str(place - 1)} for place in range(1, length))]


def test_call_chains_beyond_max_depth_are_refused() -> None:
    whole = build_sample({"tool_calls": build_call_chain(MAX_CALL_DEPTH)})
    assert msgspec.json.encode(build_call_tree(parse_artifact(whole.body).tool_calls or []))
    assert list_refused_fields({"tool_calls": build_call_chain(MAX_CALL_DEPTH + 1)}) == [
        f"tool_calls[{MAX_CALL_DEPTH}].parent_id"
    ]
    assert list_refused_fields({"tool_calls": build_call_chain(10_000)}) == [f"tool_calls[{MAX_CALL_DEPTH}].parent_id"]
    ring = [*build_call_chain(10_000)[1:], {"id": "0", "parent_id": "9999"}]
    assert len(list_refused_fields({"tool_calls": ring})) == 1


def test_artifact_accepts_at_most_ten_thousand_calls() -> None:
    assert build_sample({"tool_calls": [{}] * 10_000}).metadata.tool_calls == 10_000
    assert list_refused_fields({"tool_calls": [{}] * 10_001}) == ["tool_calls"]


@pytest.mark.parametrize(
    ("question", "query"),
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
def test_search_query_is_built_from_free_text(question: str, query: str) -> None:
    assert build_search_query(question) == query


def test_search_query_has_at_most_32_terms() -> None:
    assert len(build_search_query("a " * 10_000).split()) == 32
