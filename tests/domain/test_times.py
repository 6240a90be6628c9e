"""Test the parser of the times that callers send."""

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.artifacts.schema import Artifact
from domain.artifacts.schema import parse_artifact as read_artifact
from domain.evaluations.parser import parse_evaluation as read_evaluation
from domain.evaluations.parser import parse_evaluation_batch
from domain.shared.errors import TIME_RULE, DomainError
from domain.shared.times import normalize_times, read_time

EXAMPLE_TIME = datetime(2026, 2, 1, 8, 30, tzinfo=UTC)
EXAMPLE_DAY = datetime(2026, 2, 1, tzinfo=UTC)
TIME_BY_TEXT = {
    "2026-02-01": EXAMPLE_DAY,
    "20260201": EXAMPLE_DAY,
    "2026-02-01T08:30": EXAMPLE_TIME,
    "2026-02-01T08:30Z": EXAMPLE_TIME,
    "2026-02-01t08:30z": EXAMPLE_TIME,
    "2026-02-01 08:30:00": EXAMPLE_TIME,
    " 2026-02-01T08:30:00.000Z ": EXAMPLE_TIME,
    "2026-02-01T08:30:00.123456100Z": EXAMPLE_TIME + timedelta(microseconds=123456),
    "2026-02-01T09:30:00+01:00": EXAMPLE_TIME,
    "2026-02-01T09:30:00 01:00": EXAMPLE_TIME,
    "2026-02-01 09:30 01:00": EXAMPLE_TIME,
    "2026-02-01T09:30:00+0100": EXAMPLE_TIME,
    "2026-02-01T05:00:00-03:30": EXAMPLE_TIME,
    "1769934600": EXAMPLE_TIME,
    "1769934600.5": EXAMPLE_TIME + timedelta(seconds=0.5),
    "1769934600000": EXAMPLE_TIME,
    "0": datetime(1970, 1, 1, tzinfo=UTC),
}


@pytest.mark.parametrize("text", TIME_BY_TEXT)
def test_every_supported_form_is_parsed(text: str) -> None:
    assert read_time("since", text) == TIME_BY_TEXT[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "2026-02",
        "2026-13-01",
        "1/2/2026",
        "nan",
        "1e400",
        "２０２６-02-01",
        "2026-02-01T25:00",
        "2026-02-01T08:30+99:00",
    ],
)
def test_invalid_time_error_shows_a_valid_form(text: str) -> None:
    with pytest.raises(DomainError) as caught:
        read_time("since", text)
    assert [(error.field, error.message) for error in caught.value.errors] == [("since", TIME_RULE)]


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "99999999999999999999"])
def test_years_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(DomainError, match="1 to 9999"):
        read_time("since", text)


def test_date_as_end_includes_its_whole_day() -> None:
    assert read_time("until", "2026-02-01", is_end=True) == EXAMPLE_DAY + timedelta(days=1)
    assert read_time("until", "20260201", is_end=True) == EXAMPLE_DAY + timedelta(days=1)
    for text in ("2026-02-01T00:00", "2026-02-01T00:00Z", str(int(EXAMPLE_DAY.timestamp()))):
        assert read_time("until", text, is_end=True) == EXAMPLE_DAY


@given(st.datetimes(datetime(1000, 1, 2), datetime(9999, 12, 30)), st.integers(-840, 840))
def test_iso_format_round_trips(at: datetime, minutes: int) -> None:
    there = at.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert read_time("since", there.isoformat()) == there
    assert read_time("since", there.isoformat(" ").replace("+", " ")) == there
    assert read_time("since", at.isoformat()) == at.replace(tzinfo=UTC)


def test_times_in_bodies_are_parsed() -> None:
    for sent, at in TIME_BY_TEXT.items():
        for written in (sent, int(sent) if sent.isdecimal() and len(sent) != 8 else sent):
            body = msgspec.json.encode({"prompt": "p", "response": "r", "created_at": written, "metadata": {"a": [1]}})
            assert read_time("created_at", read_evaluation(body).created_at or EXAMPLE_TIME) == at
            assert [row.created_at is not None for row in parse_evaluation_batch(b"[" + body + b"," + body + b"]")] == [
                True,
                True,
            ]
            call = {"tool_name": "t", "start_time": written, "end_time": written, "input": {"timestamp": written}}
            inner = {
                "created_at": written,
                "time_env": {"timestamp": written},
                "tool_calls": [call],
                "inputs": {"created_at": written},
            }
            for wrapped in (inner, {"artifact_data": inner}):
                artifact = read_artifact(msgspec.json.encode(wrapped))
                assert artifact.tool_calls is not None
                assert read_time("", artifact.tool_calls[0].start_time or EXAMPLE_TIME) == at
                # Free-form values are unchanged.
                assert msgspec.json.decode(artifact.inputs) == {"created_at": written}  # type: ignore[arg-type]


def test_invalid_time_in_a_body_is_named() -> None:
    for body, field in (
        ({"prompt": "p", "response": "r", "created_at": "yesterday"}, "created_at"),
        ({"prompt": "p", "response": "r", "created_at": True}, "created_at"),
    ):
        with pytest.raises(DomainError) as caught:
            read_evaluation(msgspec.json.encode(body))
        assert [(error.field, error.message) for error in caught.value.errors] == [(field, TIME_RULE)]
    with pytest.raises(DomainError) as caught:
        read_artifact(msgspec.json.encode({"tool_calls": [{"tool_name": "t", "end_time": "soon"}]}))
    (error,) = caught.value.errors
    assert error.message == TIME_RULE
    assert error.field.endswith("end_time")


def test_normalizing_times_changes_nothing_else() -> None:
    body = b'{"created_at": 0, "inputs": {"b": 1.50, "a": "\\u00e9"}, "unknown": [1], "tool_calls": "no list"}'
    assert normalize_times(body, Artifact) == (
        b'{"created_at":"1970-01-01T00:00:00Z","inputs":{"b": 1.50, "a": "\\u00e9"},"unknown":[1],"tool_calls":"no list"}'
    )
