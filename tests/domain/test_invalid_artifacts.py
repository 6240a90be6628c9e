"""Test which artifacts are refused, with which field, and how much memory the largest ones take."""

import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.artifacts.schema import MAX_ARTIFACT_DEPTH
from domain.shared import ids
from domain.shared.errors import MAX_FIELD_ERRORS
from tests.support.sample_artifacts import NOW, build_sample, catch_refusal, list_refused_fields, read_stored_body


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"{", b"nope", b"[]", b"null", b'"x"', b'{"inputs":nul}', b'{"inputs":1}x', b'{"inputs":NaN}',
        b'{"inputs":"\xff"}', b'{"run_id":"\xff"}', b'{"inputs":"\xc3', b'{"inputs":"\xed\xa0\x80"}', b'\xff',
        b'{"inputs":"\\ud800"}', b'{"inputs":{"a":1,}}',
        b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"inputs":' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}",
        b"[" * 1_000_000,
        # Closing brackets inside a string do not close open ones.
        b'{"inputs":["' + b"]" * 500 + b'",' + b"[" * 200 + b"]" * 200 + b"]}",
    ],
)  # fmt: skip
def test_unreadable_body_is_a_malformed_request(sent: bytes) -> None:
    assert catch_refusal(sent).code == "malformed_request"


def test_depth_ignores_brackets_inside_strings() -> None:
    assert build_sample(b'{"inputs":' + b"[" * (MAX_ARTIFACT_DEPTH - 1) + b"]" * (MAX_ARTIFACT_DEPTH - 1) + b"}")
    assert (
        catch_refusal(b'{"inputs":' + b"[" * MAX_ARTIFACT_DEPTH + b"]" * MAX_ARTIFACT_DEPTH + b"}").code
        == "malformed_request"
    )
    text = '["\\' * 1000
    assert read_stored_body({"inputs": [text, "x" * 1_048_560, text]})["inputs"][2] == text


@given(
    st.recursive(st.text('["\\]{}a', max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=20),
    st.integers(0, 140),
)
def test_depth_limit_is_exact(value: Any, wraps: int) -> None:
    for _ in range(wraps):
        value = [value, ']}"\\']
    deepest, level = 0, 1
    for letter in _remove_strings(json.dumps(value)):
        level += (letter in "[{") - (letter in "]}")
        deepest = max(deepest, level)
    if deepest > MAX_ARTIFACT_DEPTH:
        assert catch_refusal({"inputs": value}).code == "malformed_request"
    else:
        assert read_stored_body({"inputs": value})["inputs"] == value


def _remove_strings(text: str) -> str:
    characters, place = [], 0
    while place < len(text):
        if text[place] == '"':
            _, place = json.decoder.scanstring(text, place + 1)
        else:
            characters.append(text[place])
            place += 1
    return "".join(characters)


TOO_LONG_TEXT = "x" * 201


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"kurral_id": ""}, "kurral_id"),
        ({"kurral_id": "x" * 129}, "kurral_id"),
        ({"kurral_id": "a\0"}, "kurral_id"),
        ({"kurral_id": 5}, "kurral_id"),
        ({"kurral_id": ids.generate_id("exec")}, "kurral_id"),
        ({"run_id": "x" * 257}, "run_id"),
        ({"run_id": "a\0"}, "run_id"),
        *[({name: bad}, name) for name in ("tenant_id", "environment", "schema_version", "created_by") for bad in (TOO_LONG_TEXT, "\0")],
        *[({"llm_config": {name: bad}}, f"llm_config.{name}") for name in ("model_name", "model_version", "provider") for bad in (TOO_LONG_TEXT, "\0")],
        ({"semantic_buckets": ["a", TOO_LONG_TEXT]}, "semantic_buckets[1]"),
        ({"semantic_buckets": ["\0"]}, "semantic_buckets[0]"),
        ({"semantic_buckets": [""]}, "semantic_buckets[0]"),
        ({"semantic_buckets": ["a"] * 33}, "semantic_buckets"),
        ({"tags": ["a", "a", "\0"]}, "tags[2]"),
        ({"tags": {"a": "\0"}}, "tags.a"),
        ({"tags": {"a": 1}}, "tags[...]"),
        ({"tags": {str(n): "" for n in range(65)}}, "tags"),
        ({"graph_version": "\0"}, "graph_version"),
        ({"created_at": "1999-12-31T23:59:59Z"}, "created_at"),
        ({"created_at": "2026-11-22T12:00:01"}, "created_at"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "created_at"),
        ({"created_at": "0001-01-01T00:00:00"}, "created_at"),
        ({"created_at": "9999-12-31T23:59:59-14:00"}, "created_at"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"created_at": 1}, "created_at"),
        ({"time_env": {"timestamp": "0001-01-01T00:00:00+14:00"}}, "time_env.timestamp"),
        ({"duration_ms": -1}, "duration_ms"),
        ({"duration_ms": 1e13}, "duration_ms"),
        (b'{"duration_ms": 1e999}', "duration_ms"),
        ({"cost_usd": 10**9 + 1}, "cost_usd"),
        ({"cost_usd": -0.1}, "cost_usd"),
        ({"token_usage": {"prompt": 1.5}}, "token_usage.prompt"),
        ({"token_usage": {"total_tokens": 10**13}}, "token_usage.total_tokens"),
        ({"token_usage": {"total_tokens": 10**40}}, "token_usage.total_tokens"),
        ({"replay_level": "D"}, "replay_level"),
        ({"determinism_report": {"overall_score": 1.1}}, "determinism_report.overall_score"),
        ({"llm_config": {"parameters": {"seed": "x"}}}, "llm_config.parameters.seed"),
        ({"llm_config": {"parameters": [1]}}, "llm_config.parameters"),
        ({"error": {"code": 1}}, "error.code"),
        ({"colour": 1}, "colour"),
        ({"llm_config": {"colour": 1}}, "llm_config.colour"),
        ({"artifact_data": {"colour": 1}}, "colour"),
        ({"artifact_data": {}, "colour": 1}, "colour"),
        ({"artifact_data": {}, "run_id": "x"}, "run_id"),
        ({"artifact_data": None}, "artifact_data"),
        ({"artifact_data": {"artifact_data": {}}}, "artifact_data"),
    ],
)  # fmt: skip
def test_invalid_field_is_named(sent: Any, field: str) -> None:
    assert list_refused_fields(sent) == [field]


def test_several_invalid_fields_are_reported_together() -> None:
    sent = {
        "run_id": "\0",
        "created_at": "1970-01-01T00:00:00",
        "tags": [TOO_LONG_TEXT],
        "tool_calls": [{"parent_id": "x"}],
    }
    assert list_refused_fields(sent) == ["tool_calls[0].parent_id", "created_at", "run_id", "tags[0]"]
    assert len(list_refused_fields({"tool_calls": [{"parent_id": "x"}] * 100})) == MAX_FIELD_ERRORS


def test_created_at_accepts_the_first_and_last_allowed_day() -> None:
    for moment in (datetime(2000, 1, 1, tzinfo=UTC), NOW + timedelta(days=1)):
        assert build_sample({"created_at": moment.isoformat()}).metadata.created_at == moment
    assert build_sample({"created_at": "2026-01-01T02:00:00+02:00"}).metadata.created_at == datetime(
        2026, 1, 1, tzinfo=UTC
    )


def test_execution_writes_artifacts_under_its_own_id_only() -> None:
    own = ids.generate_id("exec")
    artifact_record = build_sample({"kurral_id": own}, own)
    assert (artifact_record.metadata.kurral_id, artifact_record.metadata.execution_id) == (own, own)
    assert build_sample({}, own).metadata.kurral_id == own
    assert catch_refusal({"kurral_id": ids.generate_id("exec")}, own).errors[0].field == "kurral_id"


@pytest.mark.slow
@pytest.mark.parametrize("filler", [b'"' + b"a" * (2**25 - 20) + b'"', b"[" + b"[1]," * (2**23 - 20) + b"1]"])
def test_parsing_a_large_body_takes_at_most_two_and_a_half_times_its_size(filler: bytes) -> None:
    sent = b'{"inputs":' + filler + b"}"
    tracemalloc.start()
    artifact_record = build_sample(sent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert filler in artifact_record.body
    assert peak < 2.5 * len(sent)
