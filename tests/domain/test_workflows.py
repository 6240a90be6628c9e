"""Test parsing of workflows from JSON and YAML, their inputs, and rendering them as YAML."""

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
EXAMPLE_STEP: dict[str, Any] = {"id": "a", "agent": "writer", "prompt": "Hello"}
MINIMAL_WORKFLOW: dict[str, Any] = {"name": "flow", "steps": [EXAMPLE_STEP]}


def refuse_body(sent: Any, media: str = "application/json", kind: Any = NewWorkflow) -> DomainError:
    body = sent.encode() if isinstance(sent, str) else json.dumps(sent).encode()
    with pytest.raises(DomainError) as caught:
        parse_body(body, media, kind)
    return caught.value


def list_refused_fields(sent: Any, **more: Any) -> list[str]:
    error = refuse_body(sent, **more)
    assert error.code == "invalid_field"
    return [error_item.field for error_item in error.errors]


def test_all_invalid_fields_are_reported_together() -> None:
    sent = {
        "description": 5,
        "colour": "red",
        "inputs": {"topic": {"type": "text"}, "tone": {"required": "yes", "unit": "°"}, "length": 3},
        "steps": [
            {"agent": "writer", "depends_on": "b", "retry": {"attempts": 11}},
            EXAMPLE_STEP,
            {"id": "a[1]", "timeout": 0, "map": 7, "max_parallel": 0, "requires_approval": "no"},
            "then rest",
            {"id": "a\n", "retry": -1, "inputs": [], "output_file": ""},
        ],
    }
    assert sorted(list_refused_fields(sent)) == sorted(
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
def test_step_ids_accept_any_script_and_refuse_odd_whitespace(step_id: str) -> None:
    assert parse_body(
        json.dumps({**MINIMAL_WORKFLOW, "steps": [{**EXAMPLE_STEP, "id": step_id}]}).encode(), "", NewWorkflow
    ).data.steps
    for invalid_id in (
        step_id + " ",
        " " + step_id,
        step_id + "\n",
        "x" * 65,
        "",
        "a[0]",
        "a\u2028b",
        "a\x85b",
        "a\tb",
    ):
        assert list_refused_fields({**MINIMAL_WORKFLOW, "steps": [{**EXAMPLE_STEP, "id": invalid_id}]}) == [
            "steps[0].id"
        ]


@pytest.mark.parametrize(
    ("sent", "code", "field"),
    [
        ("", "malformed_request", None),
        ("[]", "malformed_request", None),
        ("null", "malformed_request", None),
        ('{"name": "x"', "malformed_request", None),
        ('{"name": "x\ud800"}'.encode("utf-8", "surrogatepass").decode("latin-1"), "invalid_field", None),
        ({"yaml": 5}, "invalid_field", "yaml"),
        ({"yaml": "name: x", "name": "y"}, "invalid_field", "name"),
        ({"yaml": "- a\n- b\n"}, "invalid_field", "yaml"),
        ({**MINIMAL_WORKFLOW, "steps": []}, "invalid_field", "steps"),
        ({**MINIMAL_WORKFLOW, "steps": {}}, "invalid_field", "steps"),
        ({**MINIMAL_WORKFLOW, "steps": [{}] * (MAX_PLAN_STEPS + 1)}, "invalid_field", "steps"),
        ({**MINIMAL_WORKFLOW, "inputs": {"": {}}}, "invalid_field", "inputs"),
        ({**MINIMAL_WORKFLOW, "inputs": 3}, "invalid_field", "inputs"),
        ({**MINIMAL_WORKFLOW, "name": ""}, "invalid_field", "name"),
        ({**MINIMAL_WORKFLOW, "status": "draft"}, "invalid_field", "status"),
        ({**MINIMAL_WORKFLOW, "description": "\0"}, "invalid_field", "description"),
    ],
)
def test_invalid_body_is_refused(sent: Any, code: str, field: str | None) -> None:
    error = refuse_body(sent)
    assert error.code == code
    assert field is None or [error_item.field for error_item in error.errors] == [field]


INVALID_YAML = """\
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
def test_invalid_yaml_fields_are_reported_with_their_line(media: str) -> None:
    expected = [
        "steps[1].retry.attempts (line 9)",
        "steps[1].tool (line 7)",
        "steps[2].id (line 10)",
        "extra (line 12)",
    ]
    assert sorted(list_refused_fields(INVALID_YAML, media=media)) == sorted(expected)
    assert sorted(list_refused_fields({"yaml": INVALID_YAML})) == sorted(expected)
    with pytest.raises(DomainError, match="UTF-8"):
        parse_body(b"name: \xff", media, NewWorkflow)
    assert list_refused_fields("just words", media=media) == ["body"]


def test_yaml_body_parses_like_json() -> None:
    text = "name: flow\nsteps:\n- {id: a, agent: writer, prompt: Hello}\n"
    for sent, media in ((text.encode(), "application/yaml"), (json.dumps({"yaml": text}).encode(), "text/plain")):
        assert (
            parse_body(sent, media, NewWorkflow).data
            == parse_body(json.dumps(MINIMAL_WORKFLOW).encode(), "application/json", NewWorkflow).data
        )
    patch = parse_body(b"status: archived", "text/yaml", PatchWorkflow).data
    assert (patch.status, patch.name, patch.outputs) == ("archived", msgspec.UNSET, msgspec.UNSET)


# Inputs of a workflow.

DECLARED_INPUTS = {
    "file": WorkflowInput(type="string", required=True),
    "lines": WorkflowInput(type="integer", default=10),
    "ratio": WorkflowInput(type="number"),
    "deep": WorkflowInput(type="boolean", default=False),
    "tags": WorkflowInput(type="array"),
    "more": WorkflowInput(type="object"),
    "any": WorkflowInput(),
}


def test_inputs_are_validated_and_completed_with_defaults() -> None:
    assert inputs.resolve_inputs(DECLARED_INPUTS, {"file": "a.py"}) == {"file": "a.py", "lines": 10, "deep": False}
    everything = {"file": "", "lines": 3.0, "ratio": 1, "deep": True, "tags": [], "more": {}, "any": None}
    assert inputs.resolve_inputs(DECLARED_INPUTS, everything) == everything
    assert inputs.resolve_inputs(None, {"undeclared": 1}) == {"undeclared": 1}
    assert inputs.resolve_inputs({}, {}) == {}
    invalid_inputs = {"lines": 1.5, "ratio": True, "deep": 1, "tags": {}, "more": [], "colour": "red"}
    with pytest.raises(DomainError) as caught:
        inputs.resolve_inputs(DECLARED_INPUTS, invalid_inputs)
    assert [error.field for error in caught.value.errors] == [
        *("inputs.colour", "inputs.file", "inputs.lines", "inputs.ratio", "inputs.deep", "inputs.tags", "inputs.more")
    ]


def test_templates_in_inputs_are_accepted_as_any_type() -> None:
    sent = {"file": "a", "lines": "{{ inputs.n }}", "tags": " {{ steps.a.outputs }} "}
    assert inputs.validate_inputs(DECLARED_INPUTS, sent, allow_templates=True) == []
    assert [error.field for error in inputs.validate_inputs(DECLARED_INPUTS, sent)] == ["inputs.lines", "inputs.tags"]
    errors = inputs.validate_inputs(
        DECLARED_INPUTS, {"file": "a", "lines": "about {{ inputs.n }}"}, "steps[1].inputs", allow_templates=True
    )
    assert [error.field for error in errors] == ["steps[1].inputs.lines"], "a text with a template in it is a text"


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        (WorkflowInput(required=True, default=1), "the input is required"),
        (WorkflowInput(type="integer", default="many"), "whole number"),
        (WorkflowInput(default=["a", {"b": "{{ inputs.x }}"}]), "{{"),
    ],
)
def test_invalid_default_is_refused(declaration: WorkflowInput, message: str) -> None:
    (error,) = inputs.validate_declarations({"ok": WorkflowInput(default="x", type="string"), "x": declaration})
    assert error.field == "inputs.x.default"
    assert message in error.message


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_every_value_has_exactly_one_type(value: Any) -> None:
    fitting = [kind for kind in ("string", "integer", "boolean", "array", "object") if inputs.has_type(value, kind)]
    assert len(fitting) == (value is not None)
    assert inputs.has_type(value, "number") == inputs.has_type(value, "integer")


# Rendering as YAML.

_TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=40
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)
_STEP_IDS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True)
_STEPS = st.builds(
    WorkflowStep,
    id=_STEP_IDS,
    name=st.none() | _TEXTS,
    agent=st.none() | _TEXTS,
    tool=st.none() | _TEXTS,
    prompt=st.none() | _TEXTS,
    inputs=st.dictionaries(_TEXTS, _VALUES, max_size=3),
    depends_on=st.lists(_STEP_IDS, max_size=3),
    when=st.none() | _TEXTS,
    map=st.none() | _TEXTS | st.lists(_VALUES, max_size=3),
    max_parallel=st.none() | st.integers(1, 1000),
    retry=st.integers(0, 10) | st.builds(RetryPolicy, attempts=st.integers(0, 10), delay=st.floats(0, 3600)),
    timeout=st.none() | st.integers(1, 3600),
    requires_approval=st.booleans(),
    continue_on_failure=st.booleans(),
    output_file=st.none() | _TEXTS,
)
_INPUTS = st.builds(
    WorkflowInput,
    type=st.sampled_from([None, "string", "array"]),
    required=st.booleans(),
    default=st.just(msgspec.UNSET) | _VALUES,
    description=st.none() | _TEXTS,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(_STEPS, min_size=1, max_size=4),
    st.none() | st.dictionaries(_TEXTS, _INPUTS, max_size=3),
    _VALUES,
    st.sampled_from(["active", "archived"]),
    st.none() | _TEXTS,
)
def test_rendered_workflow_parses_to_itself(
    steps: list[WorkflowStep], declared_inputs: Any, outputs: Any, status: Any, description: str | None
) -> None:
    workflow = Workflow(
        id="wf_x",
        name="flow",
        description=description,
        status=status,
        inputs=declared_inputs,
        steps=steps,
        outputs=outputs,
        steps_total=len(steps),
        tenant_id="t",
        user_id="u",
        created_at=NOW,
        updated_at=NOW,
    )
    parsed = parse_body(render_workflow(workflow).encode(), "application/yaml", NewWorkflow).data
    for field in NewWorkflow.__struct_fields__:
        assert getattr(parsed, field) == getattr(workflow, field), field
