"""Read what a guest reports of a result or an error, where all of it may be text of the agent."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.executions import error_type_from_exception
from domain.llms import ModelErrorKind
from infra.sandbox.exit_report import ExitReport
from infra.sandbox.guest import json_problems
from infra.sandbox.guest import main as guest
from infra.sandbox.guest_protocol import MAX_MESSAGE_CHARS, MAX_RESULT_BYTES, MAX_STACK_CHARS, outcome_from_report

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)
PLACES = st.lists(st.integers(0, 3) | st.sampled_from(["a", "b c", "ключ", "it's"]), max_size=6)


def _read_report(answer: bytes) -> Any:
    return outcome_from_report(ExitReport(answer=answer), 30, 64)


def _send_report(head: dict[str, Any], body: bytes = b"") -> Any:
    return _read_report(json.dumps(head).encode() + b"\n" + body)


@given(JSON)
def test_json_values_are_returned_unchanged(value: Any) -> None:
    report = guest._run_entrypoint(lambda _: value, "{}", "{}")
    assert msgspec.json.decode(report["body"]) == msgspec.json.decode(json.dumps(value))
    assert json_problems.find_bad_value(value) is None


@given(PLACES, st.sampled_from([float("nan"), float("-inf"), object(), b"x", {1}, "\ud800", 10**5000]))
def test_value_outside_json_is_located(place: list[int | str], bad: Any) -> None:
    value: Any = bad
    for step in reversed(place):
        value = {step: value, "z": 1} if isinstance(step, str) else [0] * step + [value, "after"]
    problem = guest._run_entrypoint(lambda _: value, "{}", "{}")["problem"]
    expected_path = ""
    for step in place:
        is_name = isinstance(step, str) and step.isidentifier()
        expected_path += (f".{step}" if expected_path else str(step)) if is_name else f"[{step!r}]"
    assert f"`{expected_path}` " in problem if place else "the result " in problem


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ({1: "a", "1": "b"}, "1 and '1'"),
        ({"x": [{None: 1, "null": 2}]}, "None and 'null'"),
        ([({True: 1, "true": 2},)], "True and 'true'"),
        ({1.5: 1, "1.5": 2}, "1.5 and '1.5'"),
    ],
)
def test_keys_that_are_equal_in_json_are_refused(value: Any, keys: str) -> None:
    assert (
        f"has the keys {keys}, which are one key in JSON"
        in guest._run_entrypoint(lambda _: value, "{}", "{}")["problem"]
    )


def test_distinct_keys_are_accepted() -> None:
    assert json.loads(guest._run_entrypoint(lambda _: {1: "a", "2": "b", None: 0}, "{}", "{}")["body"]) == {
        "1": "a",
        "2": "b",
        "null": 0,
    }


def test_cyclic_result_is_reported() -> None:
    ring: list[Any] = [1]
    ring.append({"a": ring})
    assert "holds itself" in guest._run_entrypoint(lambda _: ring, "{}", "{}")["problem"]


@pytest.mark.parametrize(
    "name", ["timeout", "out_of_memory", "worker_lost", "crashed", "result_not_json", *ModelErrorKind.__args__]
)
def test_agents_cannot_forge_error_types_of_the_platform(name: str) -> None:
    assert error_type_from_exception(name) == f"agent.{name}"
    assert _send_report({"error_type": name, "error_message": "forged"}).error_type == f"agent.{name}"


@pytest.mark.parametrize("name", ["ValueError", "gaierror", "error", "Timeout", "TimeoutError", "Fehler", "Ошибка"])
def test_exception_names_are_kept(name: str) -> None:
    assert error_type_from_exception(name) == name


@pytest.mark.parametrize("name", ["", "a b", "timeout\n", "timeout\u200b", "\x1b[31m", "x" * 150 + "-" * 100])
def test_invalid_exception_names_become_exception(name: str) -> None:
    assert error_type_from_exception(name) == "Exception"


def test_texts_of_a_report_are_truncated() -> None:
    report = _send_report({"error_type": "E" * 400_000, "error_message": "m" * 300_000, "stack": "s" * 300_000 + "end"})
    assert len(report.error_type) <= 200
    assert report.error_message == "m" * MAX_MESSAGE_CHARS
    assert report.stack == ("s" * 300_000 + "end")[-MAX_STACK_CHARS:]
    assert len(_send_report({"problem": "p" * 500_000}).error_message) == MAX_MESSAGE_CHARS


def test_result_is_measured_and_not_believed() -> None:
    assert _send_report({"problem": "forged"}, b"1").output == b"1"
    assert _send_report({"size": 10**9}, b"1").output == b"1"
    large = _send_report({"size": MAX_RESULT_BYTES + 5}, b"1" * (MAX_RESULT_BYTES + 1))
    assert (large.error_type, large.error_message) == (
        "result_too_large",
        f"The result is {MAX_RESULT_BYTES + 5} bytes of JSON; {MAX_RESULT_BYTES} are allowed.",
    )
    assert _read_report(b"").error_type == "crashed"


@pytest.mark.parametrize(
    ("status", "kind"), [(137, "crashed"), (-9, "out_of_memory"), (139, "crashed"), (1, "crashed")]
)
def test_exit_status_of_the_agent_is_not_out_of_memory(status: int, kind: str) -> None:
    assert outcome_from_report(ExitReport(status=status), 30, 64).error_type == kind
