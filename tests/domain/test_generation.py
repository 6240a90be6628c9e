"""Whatever a model says of agents, tasks, crews and names: what is made of it can be created."""

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
WORDS = st.one_of(st.text(max_size=80), st.text(alphabet="ab1 -_{}:#|>'\"\n", max_size=80))
ANYTHING = st.one_of(WORDS, st.none(), st.integers(), st.lists(WORDS, max_size=2))
ITEM = st.dictionaries(
    st.sampled_from(["name", "role", "goal", "backstory", "description", "expected_output", "agent", "tools"]), ANYTHING
)
KNOWN = {"python", "http_request"}


def offered(count: int) -> list[Tool]:
    return [
        Tool(
            id=one.id,
            name=one.name,
            slug=f"{one.name}_{number}",
            description=one.description,
            category=one.category,
            tool_type="custom",
            configuration={},
            parameters={},
            enabled=True,
            effects=True,
            tenant_id="acme",
            created_at=NOW,
            updated_at=NOW,
        )
        for number, one in enumerate((BUILT_IN_TOOLS * 10)[:count])
    ]


@given(ANYTHING)
def test_names_can_be_given_to_anything(said: Any) -> None:
    name = drafts.clean_name(said, "Agent")
    assert check_agent_name(name) == names.check_name(name, "task", frozenset({"debug"})) == name
    assert len(name) <= drafts.MAX_NAME_LENGTH + 2


@pytest.mark.parametrize(
    ("said", "name"),
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
def test_names_stay_what_they_are_as_far_as_they_can(said: Any, name: str) -> None:
    assert drafts.clean_name(said, "Agent") == name


@given(ANYTHING)
def test_runs_are_named_in_two_to_six_words(said: Any) -> None:
    name = drafts.clean_run_name(said)
    assert 2 <= len([word for word in re.split(r"[\s-]", name) if re.search(r"[^\W_]", word)]) <= 6
    assert len(name) <= 60
    msgspec.convert(name, RunName)


@pytest.mark.parametrize(
    ("said", "name"),
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
def test_names_of_runs(said: Any, name: str) -> None:
    assert drafts.clean_run_name(said) == name


@given(ITEM, st.lists(ITEM, min_size=1, max_size=4), st.lists(ITEM, min_size=1, max_size=5))
def test_a_crew_is_whole_whatever_was_said_of_it(
    said: dict[str, Any], agents: list[dict[str, Any]], tasks: list[dict[str, Any]]
) -> None:
    # As they come from the use case: names that differ in their slugs.
    called = [f"{drafts.clean_name(one.get('name'), 'Agent')[:40]} {number}" for number, one in enumerate(agents)]
    team = [drafts.build_agent(one, name, "smollm2", KNOWN) for one, name in zip(agents, called, strict=True)]
    work = [
        drafts.build_task(
            one,
            drafts.clean_name(one.get("name"), "Task"),
            called[drafts.match_member(one.get("agent"), called, n)],
            KNOWN,
        )
        for n, one in enumerate(tasks)
    ]
    crew = drafts.build_crew(said, "Crew", team, work, "smollm2")
    written = yaml_reader.parse_yaml(crew.agents_yaml, "agents_yaml").value
    asked = yaml_reader.parse_yaml(crew.tasks_yaml, "tasks_yaml").value
    assert [one["role"] for one in written.values()] == [one.role for one in team]
    assert [(one["name"], one["description"]) for one in asked.values()] == [
        (one.name, one.description) for one in work
    ]
    assert all(KEY_PATTERN.fullmatch(key) for key in (*written, *asked))
    assert PLANNING_STEP not in asked
    by_key = dict(zip(written, called, strict=True))
    assert [by_key[one["agent"]] for one in asked.values()] == [one.agent for one in work]
    for draft in (*team, *work):
        assert set(draft.tools) <= KNOWN
        assert all(isinstance(value, list) or value.strip() for value in msgspec.to_builtins(draft).values())
    reading = parse_documents(CrewSettings(agents_yaml=crew.agents_yaml, tasks_yaml=crew.tasks_yaml))
    assert [*reading.agents.problems, *reading.tasks.problems] == []
    assert [one.description for one in reading.tasks.items.values()] == [one.description for one in work]


def test_keys_differ_also_where_names_do_not() -> None:
    made = drafts._choose_keys(
        ["Planning", "Planning", "planning", "2 Fast", "顧客 1", "x" * 50, "x" * 50], "task", (PLANNING_STEP,)
    )
    assert len(set(made)) == len(made)
    assert all(KEY_PATTERN.fullmatch(key) for key in made)
    assert PLANNING_STEP not in made


def test_the_agent_that_is_meant() -> None:
    team = ["Senior Writer", "Reviewer"]
    assert [
        drafts.match_member(said, team, 7) for said in ("reviewer", "senior_writer", "the writer", "Writer", None)
    ] == [*(1, 0, 1, 0, 1)]


@pytest.mark.parametrize("kind", ["agent", "task", "crew", "name"])
@pytest.mark.parametrize("local", [True, False])
def test_schemas_are_closed_and_fit_their_examples(kind: Any, local: bool) -> None:
    choice, agents = offered(3), ["Writer"]
    schema = prompts.build_answer_schema(kind, local, choice, agents)
    jsonschema.Draft202012Validator.check_schema(schema)
    example = msgspec.json.decode(prompts._ANSWER_EXAMPLES[kind].replace(",...", ""))
    bare = prompts.build_answer_schema(kind, local, [], [])
    if kind == "name":
        example["name"] = "Travel Team - Flights To Rome"
    for several in ("agents", "tasks"):
        if several in example:
            example[several] *= 2
    jsonschema.validate(example, bare)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**example, "more": 1}, bare)

    def walk(one: Any) -> None:
        if one.get("type") == "object":
            assert one["additionalProperties"] is False
            assert one["required"] == list(one["properties"])
            for inner in one["properties"].values():
                walk(inner)
        elif one.get("type") == "array":
            assert one["maxItems"] <= 20
            walk(one["items"])
        elif local and "enum" not in one:
            assert one["maxLength"] <= 300

    walk(schema)


def test_the_local_model_can_come_to_an_end() -> None:
    """Its longest answer, a token for each letter, and the longest question have room in its window together."""
    choice = offered(24)
    for kind in ("agent", "task", "crew", "name"):
        assert _count_schema_values(prompts.build_answer_schema(kind, True, choice, ["a"] * 20)) <= MAX_SCHEMA_VALUES

    def longest(one: Any) -> int:
        if one["type"] == "object":
            return sum(longest(inner) + len(name) + 6 for name, inner in one["properties"].items())
        if one["type"] == "array":
            return int(one["maxItems"]) * (longest(one["items"]) + 2)
        return max(len(str(value)) for value in one["enum"]) if "enum" in one else int(one["maxLength"])

    # Four letters are about a token; here three make one.
    assert longest(prompts.build_answer_schema("crew", True, choice, [])) / 3 < prompts.LOCAL_ANSWER_TOKENS


def test_a_tool_of_a_server_is_chosen_by_itself() -> None:
    (server,) = offered(1)
    one = McpServerTool(**{name: getattr(server, name) for name in Tool.__struct_fields__}, tool_name="search")
    assert prompts.format_tool_reference(one) == f"{server.slug}/search"
    assert prompts.format_tool_reference(one) in prompts.build_instructions("agent", [one], [])
    assert names.make_slug(server.name)


def test_an_example_that_is_repeated_is_noticed() -> None:
    for kind in ("agent", "task"):
        example = msgspec.json.decode(prompts._ANSWER_EXAMPLES[kind])
        assert prompts.is_example_repeated(kind, example)
        assert prompts.is_example_repeated(kind, {name: f" {text.upper()}." for name, text in example.items()})
        # One text alike may be chance: somebody asks for a planner of travels.
        assert not prompts.is_example_repeated(kind, {"name": example["name"]})
        assert not prompts.is_example_repeated(kind, {"name": "Horses", "role": 5})


def test_the_local_model_is_shown_no_example() -> None:
    for kind in ("agent", "task", "crew"):
        assert "Travel" in prompts.build_instructions(kind, [], []) or "Flights" in prompts.build_instructions(
            kind, [], []
        )
        local = prompts.build_instructions(kind, [], [], local=True)
        assert not any(word in local for word in ("Travel", "Flights", "{"))
