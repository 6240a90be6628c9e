"""Test names of MCP tools, URIs of resources, and progress: with everything that users can make of them."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.mcp.addresses import format_artifact_uri, format_file_uri, parse_uri
from api.mcp.messages import InvalidMessage, RpcMessage, parse_message
from api.mcp.progress import ProgressReader
from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.mcp import ExposedTarget
from domain.mcp.tool_names import assign_tool_names
from domain.shared import ids
from domain.shared.errors import NotFound

pytestmark = pytest.mark.fast
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
names = st.one_of(
    st.sampled_from(["report", "Report", "re port", "报告", "---", "a" * 128, "agent_x"]),
    st.text(min_size=1, max_size=128),
)


def build_targets(chosen: list[str]) -> list[ExposedTarget]:
    """Return targets with these names, in the order of their creation."""
    agent_ids = ids.generate_ids("agent", len(chosen))
    return [ExposedTarget(kind="agent", id=row_id, name=name) for row_id, name in zip(agent_ids, chosen, strict=True)]


@given(st.lists(names, max_size=30), st.integers(0, 30))
def test_tool_names_are_unique_and_stay_when_targets_are_added(chosen: list[str], count: int) -> None:
    targets = build_targets(chosen)
    named = assign_tool_names(targets)
    assert list(named.values()) == targets
    assert all(TOOL_NAME.fullmatch(name) for name in named)
    earlier = assign_tool_names(targets[:count])
    assert list(earlier) == list(named)[: len(earlier)]


def test_names_that_are_made_to_collide_differ() -> None:
    first, second = build_targets(["report", "report"])
    tail = second.id.rpartition("_")[2]
    forged = build_targets([f"report {tail[-6:]}", f"report {tail}", f"agent {tail} 2"])
    named = assign_tool_names([first, *forged, second])
    assert len(named) == 5
    assert list(named)[0] == "report"


@given(st.lists(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1), min_size=1, max_size=5))
def test_uris_of_files_lead_back_to_their_paths(parts: list[str]) -> None:
    path = "/".join(parts)
    address = parse_uri(format_file_uri("exec_1", path)) if len(format_file_uri("exec_1", path)) <= 4096 else None
    assert address is None or (address.kind, address.id, address.path) == ("file", "exec_1", path)
    assert parse_uri(format_artifact_uri(path[:100])).id == path[:100]


@given(st.text())
def test_other_uris_are_not_found(uri: str) -> None:
    with pytest.raises(NotFound):
        parse_uri(uri)


@given(st.binary() | st.text().map(str.encode))
def test_bodies_are_read_or_refused(body: bytes) -> None:
    try:
        assert isinstance(parse_message(body), RpcMessage)
    except InvalidMessage as error:
        assert error.to_response().status_code == 400


fractions = st.floats(0, 1) | st.none()
events: st.SearchStrategy[tuple[str, dict[str, Any]]] = st.one_of(
    st.tuples(st.just("progress"), st.fixed_dictionaries({"fraction": fractions, "message": st.text()})),
    st.tuples(st.just("token"), st.fixed_dictionaries({"content": st.text()})),
    st.tuples(st.just("status"), st.fixed_dictionaries({"status": st.sampled_from(["running", "completed"])})),
    st.tuples(st.just("output"), st.fixed_dictionaries({"value": st.integers() | st.text() | st.none()})),
    st.tuples(
        st.just("step"),
        st.fixed_dictionaries(
            {
                "step": st.sampled_from("abc"),
                "item": st.integers(0, 2) | st.none(),
                "status": st.sampled_from(["running", "completed", "failed"]),
            }
        ),
    ),
    st.tuples(st.sampled_from(["cost", "thinking", "egress"]), st.just({})),
)


@given(st.sampled_from(["run", "llm", "plan"]), st.lists(events, max_size=40))
def test_progress_rises_with_each_notification_and_stays_below_its_total(
    lane: Any, written: list[tuple[Any, dict[str, Any]]]
) -> None:
    reader = ProgressReader(build_execution(lane))
    before = 0.0
    for event_type, data in written:
        note = reader.read_event(ExecutionEvent(type=event_type, data=data, at=NOW))
        if note is not None:
            assert note.progress > before
            assert note.total is None or note.total >= note.progress
            before = note.progress


def build_execution(lane: Any) -> Execution:
    return Execution(
        id="exec_1",
        run_name="run",
        kind="agent",
        agent_id=None,
        agent_version_id=None,
        user_id="user_1",
        tenant_id="acme",
        status="running",
        input_data={},
        output_data=None,
        error_message=None,
        error_type=None,
        attempt=1,
        max_attempts=1,
        timeout=1,
        lane=lane,
        retry_of=None,
        steps_total=3,
        steps_completed=0,
        total_cost=0.0,
        created_at=NOW,
        started_at=None,
        completed_at=None,
        updated_at=NOW,
    )
