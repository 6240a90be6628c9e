"""Test that any answer of a model becomes valid agents, tasks, crews and names."""

import re
from datetime import UTC, datetime
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.agents import check_agent_name
from domain.crews.parser import parse_documents
from domain.crews.schema import PLANNING_STEP, CrewSettings
from domain.executions import RunName
from domain.generation import drafts, prompts
from domain.shared import names, yaml_reader
from domain.shared.names import KEY_PATTERN
from domain.tools import BUILT_IN_TOOLS, McpServerTool, Tool
from infra.llm.local_model import MAX_SCHEMA_VALUES, _count_schema_values

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TEXTS = st.one_of(st.text(max_size=80), st.text(alphabet="ab1 -_{}:#|>'\"\n", max_size=80))
ANSWER_VALUES = st.one_of(TEXTS, st.none(), st.integers(), st.lists(TEXTS, max_size=2))
ANSWER_OBJECTS = st.dictionaries(
    st.sampled_from(["name", "role", "goal", "backstory", "description", "expected_output", "agent", "tools"]),
    ANSWER_VALUES,
)
KNOWN_TOOLS = {"python", "http_request"}


def build_tools(count: int) -> list[Tool]:
    return [
        Tool(
            id=tool.id,
            name=tool.name,
            slug=f"{tool.name}_{number}",
            description=tool.description,
            category=tool.category,
            tool_type="custom",
            configuration={},
            parameters={},
            enabled=True,
            effects=True,
            tenant_id="acme",
            created_at=NOW,
            updated_at=NOW,
        )
        for number, tool in enumerate((BUILT_IN_TOOLS * 10)[:count])
    ]


@given(ANSWER_VALUES)
def test_any_answer_becomes_a_valid_name(answer: Any) -> None:
    name = drafts.clean_name(answer, "Agent")
    assert check_agent_name(name) == names.check_name(name, "task", frozenset({"debug"})) == name
    assert len(name) <= drafts.MAX_NAME_LENGTH + 2


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Customer Service Agent", "Customer Service Agent"),
        ("  customer_service_agent\n", "customer service agent"),
        ("Research/Analysis: AI", "Research Analysis AI"),
        ("executions", "executions 1"),
        ("顧客", "顧客"),
        ("..", "Agent"),
        (None, "Agent"),
        ("x" * 99, "x" * 50),
    ],
)
def test_valid_names_are_kept_and_others_cleaned(answer: Any, name: str) -> None:
    assert drafts.clean_name(answer, "Agent") == name


@given(ANSWER_VALUES)
def test_run_names_have_two_to_six_words(answer: Any) -> None:
    name = drafts.clean_run_name(answer)
    assert 2 <= len([word for word in re.split(r"[\s-]", name) if re.search(r"[^\W_]", word)]) <= 6
    assert len(name) <= 60
    msgspec.convert(name, RunName)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Research Team - AI Analysis", "Research Team - AI Analysis"),
        ('"Weekly  report"', "Weekly report"),
        ("Research", "Research Run"),
        ("", "New Run"),
        ("one two three four five six seven", "one two three four five six"),
        ("one - two -", "one - two"),
        ("x" * 70, "x" * 50 + " Run"),
        (7, "New Run"),
    ],
)
def test_run_names_are_cleaned(answer: Any, name: str) -> None:
    assert drafts.clean_run_name(answer) == name


@given(
    ANSWER_OBJECTS, st.lists(ANSWER_OBJECTS, min_size=1, max_size=4), st.lists(ANSWER_OBJECTS, min_size=1, max_size=5)
)
def test_any_answer_becomes_a_valid_crew(
    answer: dict[str, Any], agents: list[dict[str, Any]], tasks: list[dict[str, Any]]
) -> None:
    # As the use case passes them: names that differ in their slugs.
    agent_names = [
        f"{drafts.clean_name(agent.get('name'), 'Agent')[:40]} {number}" for number, agent in enumerate(agents)
    ]
    team = [
        drafts.build_agent(agent, name, "smollm2", KNOWN_TOOLS) for agent, name in zip(agents, agent_names, strict=True)
    ]
    work = [
        drafts.build_task(
            task,
            drafts.clean_name(task.get("name"), "Task"),
            agent_names[drafts.match_member(task.get("agent"), agent_names, number)],
            KNOWN_TOOLS,
        )
        for number, task in enumerate(tasks)
    ]
    crew = drafts.build_crew(answer, "Crew", team, work, "smollm2")
    agents_document = yaml_reader.parse_yaml(crew.agents_yaml, "agents_yaml").value
    tasks_document = yaml_reader.parse_yaml(crew.tasks_yaml, "tasks_yaml").value
    assert [agent_fields["role"] for agent_fields in agents_document.values()] == [draft.role for draft in team]
    assert [(task_fields["name"], task_fields["description"]) for task_fields in tasks_document.values()] == [
        (draft.name, draft.description) for draft in work
    ]
    assert all(KEY_PATTERN.fullmatch(key) for key in (*agents_document, *tasks_document))
    assert PLANNING_STEP not in tasks_document
    name_by_key = dict(zip(agents_document, agent_names, strict=True))
    assert [name_by_key[task_fields["agent"]] for task_fields in tasks_document.values()] == [
        draft.agent for draft in work
    ]
    for draft in (*team, *work):
        assert set(draft.tools) <= KNOWN_TOOLS
        assert all(isinstance(value, list) or value.strip() for value in msgspec.to_builtins(draft).values())
    reading = parse_documents(CrewSettings(agents_yaml=crew.agents_yaml, tasks_yaml=crew.tasks_yaml))
    assert [*reading.agents.problems, *reading.tasks.problems] == []
    assert [task.description for task in reading.tasks.items.values()] == [draft.description for draft in work]


def test_keys_are_unique_even_for_equal_names() -> None:
    keys = drafts._choose_keys(
        ["Planning", "Planning", "planning", "2 Fast", "顧客 1", "x" * 50, "x" * 50], "task", (PLANNING_STEP,)
    )
    assert len(set(keys)) == len(keys)
    assert all(KEY_PATTERN.fullmatch(key) for key in keys)
    assert PLANNING_STEP not in keys


def test_agent_reference_matches_the_nearest_member() -> None:
    team = ["Senior Writer", "Reviewer"]
    assert [
        drafts.match_member(reference, team, 7)
        for reference in ("reviewer", "senior_writer", "the writer", "Writer", None)
    ] == [*(1, 0, 1, 0, 1)]


@pytest.mark.parametrize("kind", ["agent", "task", "crew", "name"])
@pytest.mark.parametrize("local", [True, False])
def test_answer_schemas_are_closed_and_accept_their_examples(kind: Any, local: bool) -> None:
    tools, agents = build_tools(3), ["Writer"]
    schema = prompts.build_answer_schema(kind, local, tools, agents)
    jsonschema.Draft202012Validator.check_schema(schema)
    example = msgspec.json.decode(prompts._ANSWER_EXAMPLES[kind].replace(",...", ""))
    bare = prompts.build_answer_schema(kind, local, [], [])
    if kind == "name":
        example["name"] = "Travel Team - Flights To Rome"
    for list_field in ("agents", "tasks"):
        if list_field in example:
            example[list_field] *= 2
    jsonschema.validate(example, bare)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**example, "more": 1}, bare)

    def check_closed(subschema: Any) -> None:
        if subschema.get("type") == "object":
            assert subschema["additionalProperties"] is False
            assert subschema["required"] == list(subschema["properties"])
            for inner in subschema["properties"].values():
                check_closed(inner)
        elif subschema.get("type") == "array":
            assert subschema["maxItems"] <= 20
            check_closed(subschema["items"])
        elif local and "enum" not in subschema:
            assert subschema["maxLength"] <= 300

    check_closed(schema)


def test_longest_local_answer_fits_the_context_window() -> None:
    """Ensure that its longest answer fits, even at one token for three letters."""
    tools = build_tools(24)
    for kind in ("agent", "task", "crew", "name"):
        assert _count_schema_values(prompts.build_answer_schema(kind, True, tools, ["a"] * 20)) <= MAX_SCHEMA_VALUES

    def count_longest_answer(subschema: Any) -> int:
        if subschema["type"] == "object":
            return sum(count_longest_answer(inner) + len(name) + 6 for name, inner in subschema["properties"].items())
        if subschema["type"] == "array":
            return int(subschema["maxItems"]) * (count_longest_answer(subschema["items"]) + 2)
        return (
            max(len(str(value)) for value in subschema["enum"]) if "enum" in subschema else int(subschema["maxLength"])
        )

    # A token is about four letters; this counts three.
    assert count_longest_answer(prompts.build_answer_schema("crew", True, tools, [])) / 3 < prompts.LOCAL_ANSWER_TOKENS


def test_mcp_server_tool_is_referenced_by_server_and_name() -> None:
    (server,) = build_tools(1)
    tool = McpServerTool(**{name: getattr(server, name) for name in Tool.__struct_fields__}, tool_name="search")
    assert prompts.format_tool_reference(tool) == f"{server.slug}/search"
    assert prompts.format_tool_reference(tool) in prompts.build_instructions("agent", [tool], [])
    assert names.make_slug(server.name)


def test_repeated_example_is_detected() -> None:
    for kind in ("agent", "task"):
        example = msgspec.json.decode(prompts._ANSWER_EXAMPLES[kind])
        assert prompts.is_example_repeated(kind, example)
        assert prompts.is_example_repeated(kind, {name: f" {text.upper()}." for name, text in example.items()})
        # One equal text may be chance: a user may ask for a travel planner.
        assert not prompts.is_example_repeated(kind, {"name": example["name"]})
        assert not prompts.is_example_repeated(kind, {"name": "Horses", "role": 5})


def test_local_model_prompt_contains_no_example() -> None:
    for kind in ("agent", "task", "crew"):
        assert "Travel" in prompts.build_instructions(kind, [], []) or "Flights" in prompts.build_instructions(
            kind, [], []
        )
        local = prompts.build_instructions(kind, [], [], local=True)
        assert not any(word in local for word in ("Travel", "Flights", "{"))
