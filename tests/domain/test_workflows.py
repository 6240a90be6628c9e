"""Reading workflows, JSON and YAML; what they take; and that what is written as YAML is read as it was."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.plans.schema import MAX_PLAN_STEPS, RetryPolicy
from domain.shared.errors import DomainError
from domain.workflows import (
    NewWorkflow,
    PatchWorkflow,
    Workflow,
    WorkflowInput,
    WorkflowStep,
    inputs,
    parse_body,
    render_workflow,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
STEP: dict[str, Any] = {"id": "a", "agent": "writer", "prompt": "Hello"}
GOOD: dict[str, Any] = {"name": "flow", "steps": [STEP]}


def refusal(sent: Any, media: str = "application/json", kind: Any = NewWorkflow) -> DomainError:
    body = sent.encode() if isinstance(sent, str) else json.dumps(sent).encode()
    with pytest.raises(DomainError) as caught:
        parse_body(body, media, kind)
    return caught.value


def places(sent: Any, **more: Any) -> list[str]:
    error = refusal(sent, **more)
    assert error.code == "invalid_field"
    return [one.field for one in error.errors]


def test_all_mistakes_are_told_at_once_each_with_its_place() -> None:
    sent = {
        "description": 5,
        "colour": "red",
        "inputs": {"topic": {"type": "text"}, "tone": {"required": "yes", "unit": "°"}, "length": 3},
        "steps": [
            {"agent": "writer", "depends_on": "b", "retry": {"attempts": 11}},
            STEP,
            {"id": "a[1]", "timeout": 0, "map": 7, "max_parallel": 0, "requires_approval": "no"},
            "then rest",
            {"id": "a\n", "retry": -1, "inputs": [], "output_file": ""},
        ],
    }
    assert sorted(places(sent)) == sorted(
        [
            *("name", "description", "colour"),
            *("inputs.topic.type", "inputs.tone.required", "inputs.tone.unit", "inputs.length"),
            *("steps[0].id", "steps[0].depends_on", "steps[0].retry.attempts"),
            *("steps[2].id", "steps[2].timeout", "steps[2].map", "steps[2].max_parallel"),
            *("steps[2].requires_approval", "steps[3]"),
            *("steps[4].id", "steps[4].retry", "steps[4].inputs", "steps[4].output_file"),
        ]
    )


@pytest.mark.parametrize(
    "step_id", ["a", "_", "A-1_b", "x" * 64, "ä", "研究", "a.b", "-a", "2nd", "Write it up", "🔎", "C++"]
)
def test_ids_of_steps(step_id: str) -> None:
    assert parse_body(json.dumps({**GOOD, "steps": [{**STEP, "id": step_id}]}).encode(), "", NewWorkflow).data.steps
    for bad in (step_id + " ", " " + step_id, step_id + "\n", "x" * 65, "", "a[0]", "a\u2028b", "a\x85b", "a\tb"):
        assert places({**GOOD, "steps": [{**STEP, "id": bad}]}) == ["steps[0].id"]


@pytest.mark.parametrize(
    ("sent", "code", "place"),
    [
        ("", "malformed_request", None),
        ("[]", "malformed_request", None),
        ("null", "malformed_request", None),
        ('{"name": "x"', "malformed_request", None),
        ('{"name": "x\ud800"}'.encode("utf-8", "surrogatepass").decode("latin-1"), "invalid_field", None),
        ({"yaml": 5}, "invalid_field", "yaml"),
        ({"yaml": "name: x", "name": "y"}, "invalid_field", "name"),
        ({"yaml": "- a\n- b\n"}, "invalid_field", "yaml"),
        ({**GOOD, "steps": []}, "invalid_field", "steps"),
        ({**GOOD, "steps": {}}, "invalid_field", "steps"),
        ({**GOOD, "steps": [{}] * (MAX_PLAN_STEPS + 1)}, "invalid_field", "steps"),
        ({**GOOD, "inputs": {"": {}}}, "invalid_field", "inputs"),
        ({**GOOD, "inputs": 3}, "invalid_field", "inputs"),
        ({**GOOD, "name": ""}, "invalid_field", "name"),
        ({**GOOD, "status": "draft"}, "invalid_field", "status"),
        ({**GOOD, "description": "\0"}, "invalid_field", "description"),
    ],
)
def test_bodies_that_are_none(sent: Any, code: str, place: str | None) -> None:
    error = refusal(sent)
    assert error.code == code
    assert place is None or [one.field for one in error.errors] == [place]


YAML = """\
name: flow
steps:
  - id: a
    agent: writer
    prompt: Hello
  - id: b
    tool: [x]
    retry:
      attempts: many
  - name: c
outputs: {}
extra: 1
"""


@pytest.mark.parametrize("media", ["application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"])
def test_mistakes_in_yaml_name_their_line(media: str) -> None:
    expected = [
        "steps[1].retry.attempts (line 9)",
        "steps[1].tool (line 7)",
        "steps[2].id (line 10)",
        "extra (line 12)",
    ]
    assert sorted(places(YAML, media=media)) == sorted(expected)
    assert sorted(places({"yaml": YAML})) == sorted(expected)
    with pytest.raises(DomainError, match="UTF-8"):
        parse_body(b"name: \xff", media, NewWorkflow)
    assert places("just words", media=media) == ["body"]


def test_a_yaml_document_says_the_same_as_json() -> None:
    text = "name: flow\nsteps:\n- {id: a, agent: writer, prompt: Hello}\n"
    for sent, media in ((text.encode(), "application/yaml"), (json.dumps({"yaml": text}).encode(), "text/plain")):
        assert (
            parse_body(sent, media, NewWorkflow).data
            == parse_body(json.dumps(GOOD).encode(), "application/json", NewWorkflow).data
        )
    patch = parse_body(b"status: archived", "text/yaml", PatchWorkflow).data
    assert (patch.status, patch.name, patch.outputs) == ("archived", msgspec.UNSET, msgspec.UNSET)


# What a workflow is given.

TAKES = {
    "file": WorkflowInput(type="string", required=True),
    "lines": WorkflowInput(type="integer", default=10),
    "ratio": WorkflowInput(type="number"),
    "deep": WorkflowInput(type="boolean", default=False),
    "tags": WorkflowInput(type="array"),
    "more": WorkflowInput(type="object"),
    "any": WorkflowInput(),
}


def test_what_is_sent_is_checked_and_completed() -> None:
    assert inputs.resolve_inputs(TAKES, {"file": "a.py"}) == {"file": "a.py", "lines": 10, "deep": False}
    everything = {"file": "", "lines": 3.0, "ratio": 1, "deep": True, "tags": [], "more": {}, "any": None}
    assert inputs.resolve_inputs(TAKES, everything) == everything
    assert inputs.resolve_inputs(None, {"whatever": 1}) == {"whatever": 1}
    assert inputs.resolve_inputs({}, {}) == {}
    wrong = {"lines": 1.5, "ratio": True, "deep": 1, "tags": {}, "more": [], "colour": "red"}
    with pytest.raises(DomainError) as caught:
        inputs.resolve_inputs(TAKES, wrong)
    assert [one.field for one in caught.value.errors] == [
        *("inputs.colour", "inputs.file", "inputs.lines", "inputs.ratio", "inputs.deep", "inputs.tags", "inputs.more")
    ]


def test_templates_may_be_anything_before_they_are_filled() -> None:
    sent = {"file": "a", "lines": "{{ inputs.n }}", "tags": " {{ steps.a.outputs }} "}
    assert inputs.validate_inputs(TAKES, sent, allow_templates=True) == []
    assert [one.field for one in inputs.validate_inputs(TAKES, sent)] == ["inputs.lines", "inputs.tags"]
    partly = inputs.validate_inputs(
        TAKES, {"file": "a", "lines": "about {{ inputs.n }}"}, "steps[1].inputs", allow_templates=True
    )
    assert [one.field for one in partly] == ["steps[1].inputs.lines"], "a text with a template in it is a text"


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (WorkflowInput(required=True, default=1), "the input is required"),
        (WorkflowInput(type="integer", default="many"), "whole number"),
        (WorkflowInput(default=["a", {"b": "{{ inputs.x }}"}]), "{{"),
    ],
)
def test_defaults_that_cannot_be(one: WorkflowInput, message: str) -> None:
    (error,) = inputs.validate_declarations({"ok": WorkflowInput(default="x", type="string"), "x": one})
    assert error.field == "inputs.x.default"
    assert message in error.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_every_value_is_of_one_type(value: Any) -> None:
    fitting = [kind for kind in ("string", "integer", "boolean", "array", "object") if inputs.has_type(value, kind)]
    assert len(fitting) == (value is not None)
    assert inputs.has_type(value, "number") == inputs.has_type(value, "integer")


# YAML that makes the same workflow again.

_WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=40
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=8,
)
_IDS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True)
_STEPS = st.builds(
    WorkflowStep,
    id=_IDS,
    name=st.none() | _WORDS,
    agent=st.none() | _WORDS,
    tool=st.none() | _WORDS,
    prompt=st.none() | _WORDS,
    inputs=st.dictionaries(_WORDS, _VALUES, max_size=3),
    depends_on=st.lists(_IDS, max_size=3),
    when=st.none() | _WORDS,
    map=st.none() | _WORDS | st.lists(_VALUES, max_size=3),
    max_parallel=st.none() | st.integers(1, 1000),
    retry=st.integers(0, 10) | st.builds(RetryPolicy, attempts=st.integers(0, 10), delay=st.floats(0, 3600)),
    timeout=st.none() | st.integers(1, 3600),
    requires_approval=st.booleans(),
    continue_on_failure=st.booleans(),
    output_file=st.none() | _WORDS,
)
_INPUTS = st.builds(
    WorkflowInput,
    type=st.sampled_from([None, "string", "array"]),
    required=st.booleans(),
    default=st.just(msgspec.UNSET) | _VALUES,
    description=st.none() | _WORDS,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(_STEPS, min_size=1, max_size=4),
    st.none() | st.dictionaries(_WORDS, _INPUTS, max_size=3),
    _VALUES,
    st.sampled_from(["active", "archived"]),
    st.none() | _WORDS,
)
def test_what_is_written_is_read_as_it_was(
    steps: list[WorkflowStep], takes: Any, outputs: Any, status: Any, description: str | None
) -> None:
    workflow = Workflow(
        id="wf_x",
        name="flow",
        description=description,
        status=status,
        inputs=takes,
        steps=steps,
        outputs=outputs,
        steps_total=len(steps),
        tenant_id="t",
        user_id="u",
        created_at=NOW,
        updated_at=NOW,
    )
    again = parse_body(render_workflow(workflow).encode(), "application/yaml", NewWorkflow).data
    for field in NewWorkflow.__struct_fields__:
        assert getattr(again, field) == getattr(workflow, field), field
