"""Test parsing of crews' YAML, which reports all problems at once, and the order of their tasks."""

import json
import textwrap
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from domain.crews.compiler import order_tasks
from domain.crews.parser import CrewDocuments, parse_documents
from domain.crews.roster import CrewTask
from domain.crews.schema import MAX_CREW_AGENTS, CrewSettings
from domain.shared import yaml_reader

AGENTS_YAML = """\
# Who does it.
researcher:
  role: >
    {topic} Senior
    Researcher
  goal: Find out
  backstory: >
    You know
    a lot.
  llm: openai/gpt-4o
  tools: [http_request]
  allow_delegation: true
  verbose: true
  max_iter: 7
  max_execution_time: 90
  temperature: 1
  max_tokens: 300

writer: {role: Writer, goal: Write, model: smollm2}
"""
TASKS_YAML = """\
research:
  description: >
    Look into {topic}.

    All of it.
  expected_output: Ten points
  agent: researcher
  async_execution: true
write:
  name: The report
  description: Write it down
  expected_output: A report
  agent: writer
  context:
    - research
  tools: [filesystem_write]
  markdown: true
  output_file: out/report.md
  human_input: false
"""


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=10)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | PRINTABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3),
    max_leaves=5,
)


def parse_crew(agents: str | None = AGENTS_YAML, tasks: str | None = TASKS_YAML) -> CrewDocuments:
    return parse_documents(CrewSettings(agents_yaml=agents, tasks_yaml=tasks))


def list_problems(documents: CrewDocuments) -> list[tuple[str, int | None]]:
    return [(problem.field, problem.line) for problem in (*documents.agents.problems, *documents.tasks.problems)]


def test_every_field_of_both_documents_is_parsed() -> None:
    documents = parse_crew()
    assert list_problems(documents) == []
    researcher, writer = documents.agents.items["researcher"], documents.agents.items["writer"]
    assert (researcher.role, researcher.backstory) == ("{topic} Senior Researcher", "You know a lot.")
    assert (researcher.llm, researcher.tools, researcher.temperature) == ("openai/gpt-4o", ["http_request"], 1.0)
    assert (researcher.allow_delegation, researcher.verbose) == (True, True)
    assert (researcher.max_iter, researcher.max_execution_time, researcher.max_tokens) == (7, 90, 300)
    assert (writer.model, writer.verbose, writer.tools) == ("smollm2", None, [])
    research, write = documents.tasks.items["research"], documents.tasks.items["write"]
    assert research.description == "Look into {topic}.\nAll of it."
    assert (research.async_execution, research.context) == (True, None)
    assert (write.name, write.context, write.tools) == ("The report", ["research"], ["filesystem_write"])
    assert (write.markdown, write.output_file, write.human_input) == (True, "out/report.md", False)


@pytest.mark.parametrize(
    ("document", "text", "field", "line", "message"),
    [
        (
            "agents",
            "a:\n  role: R\n  mood: fine\n",
            "agents_yaml.a.mood",
            3,
            "is not a field here; the fields are role",
        ),
        ("agents", "a:\n  role: R\n\n  max_rpm: fast\n", "agents_yaml.a.max_rpm", 4, "Expected `int`"),
        ("agents", "a:\n  role: [R]\n", "agents_yaml.a.role", 2, "Expected `str`, got `array`"),
        ("agents", "a:\n  role: R\n  max_iter: 0\n", "agents_yaml.a.max_iter", 3, ">= 1"),
        ("agents", "a:\n  role: R\n  verbose: 'yes'\n", "agents_yaml.a.verbose", 3, "Expected `bool"),
        ("agents", "a:\n  role: R\n  tools:\n  - x\n  - 5\n", "agents_yaml.a.tools", None, "Expected `str`, got `int`"),
        ("agents", "a: fine\n", "agents_yaml.a", 1, "must be a mapping of fields"),
        ("agents", "- a\n", "agents_yaml", None, "must be a mapping"),
        ("agents", "'a[b':\n  role: R\n", "agents_yaml.a[b", 1, "a key must be"),
        ("agents", "7:\n  role: R\n", "agents_yaml", 1, "put 7 in quotes"),
        ("tasks", "t:\n  description: D\n  human_input: sure\n", "tasks_yaml.t.human_input", 3, "Expected `bool`"),
        ("tasks", "t:\n  description: D\n  context: u\n", "tasks_yaml.t.context", 3, "Expected `array"),
        ("tasks", "t:\n  description: D\n  callback: x\n", "tasks_yaml.t.callback", 3, "Python code"),
        ("tasks", "t:\n  description: D\n  7: x\n", "tasks_yaml", 3, "put 7 in quotes"),
        ("tasks", "t: {\n", "tasks_yaml", 2, ""),
        ("tasks", "t:\n  description: D\n\tagent: x\n", "tasks_yaml", 3, ""),
        ("tasks", "t: &x {description: D}\nu: *x\n", "tasks_yaml", None, ""),
        ("tasks", "t: !!python/object:os.system {}\n", "tasks_yaml", None, ""),
        (
            "tasks",
            "t:\n  description: D\n  description: E\n",
            "tasks_yaml",
            3,
            "duplicate key 'description', first on line 2",
        ),
    ],
)
def test_problem_is_reported_with_field_and_line(
    document: str, text: str, field: str, line: int | None, message: str
) -> None:
    documents = parse_crew(agents=text, tasks=None) if document == "agents" else parse_crew(tasks=text)
    (problem,) = [*documents.agents.problems, *documents.tasks.problems]
    assert problem.field.startswith(field)
    assert message in problem.message
    assert problem.line is not None
    assert line in (None, problem.line)
    assert problem.field_error.field == f"{problem.field} (line {problem.line})"


def test_problems_of_both_documents_are_reported_together() -> None:
    agents = textwrap.dedent("""\
        a:
          role: 3
          colour: red
          max_tokens: many
        b:
    """)
    tasks = textwrap.dedent("""\
        t:
          description:
          agent: [a]
        "[?]": {}
    """)
    assert list_problems(parse_crew(agents, tasks)) == [
        ("agents_yaml.a.role", 2),
        ("agents_yaml.a.colour", 3),
        ("agents_yaml.a.max_tokens", 4),
        ("agents_yaml.b", 5),
        ("tasks_yaml.t.agent", 3),
        ("tasks_yaml.[?]", 4),
    ]


def test_unreadable_document_hides_no_problem_of_the_other() -> None:
    documents = parse_crew("a: {\n", "t:\n  colour: red\n")
    assert documents.agents.is_unreadable
    assert [field for field, _ in list_problems(documents)] == ["agents_yaml", "tasks_yaml.t.colour"]


def test_duplicate_keys_hide_no_other_problem() -> None:
    tasks = textwrap.dedent("""\
        t:
          description: >
            Of several
            lines
          colour: red
          context:
          - u
          description: |
            Once
            more

            and more
          context:
            - [deep, {er: 1, er: 2}]
          agent: [a]
        u: {agent: a, agent: b}
        t:
          agent: c
        v: {agent: 5, mood: fine}
    """)
    documents = parse_crew(None, tasks)
    assert list_problems(documents) == [
        ("tasks_yaml", 8),
        ("tasks_yaml", 13),
        ("tasks_yaml", 16),
        ("tasks_yaml", 17),
        ("tasks_yaml.t.colour", 5),
        ("tasks_yaml.t.agent", 15),
        ("tasks_yaml.v.agent", 19),
        ("tasks_yaml.v.mood", 19),
    ]
    assert (documents.tasks.items["t"].description, documents.tasks.items["u"].agent) == ("Of several lines", "a")
    # If the rest cannot be read either, both problems are reported.
    assert list_problems(parse_crew(None, "t: {x: 1}\nt: 2\nu: !!str x\n")) == [("tasks_yaml", 2), ("tasks_yaml", 3)]


KEY_TEXTS = st.text("abc", min_size=1, max_size=2)
MAPPINGS = st.dictionaries(KEY_TEXTS, JSON_VALUES, min_size=1, max_size=4)


@given(MAPPINGS, MAPPINGS, st.booleans())
def test_first_value_of_a_duplicate_key_is_kept(first: dict[str, Any], second: dict[str, Any], flow: bool) -> None:
    if flow:
        items = [json.dumps({key: value})[1:-1] for mapping in (first, second) for key, value in mapping.items()]
        text = "{" + ", ".join(items) + "}"
    else:
        text = yaml_reader.dump_yaml(first) + yaml_reader.dump_yaml(second)
    document = yaml_reader.read_yaml(text)
    assert [duplicate.key for duplicate in document.duplicates] == [key for key in second if key in first]
    assert document.value == {**second, **first}


def test_crew_has_at_most_max_agents() -> None:
    many = "\n".join(f"a{number}: {{role: R, goal: G}}" for number in range(MAX_CREW_AGENTS + 1))
    (problem,) = parse_crew(many, None).agents.problems
    assert f"{MAX_CREW_AGENTS} are allowed" in problem.message


@pytest.mark.slow
@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_parsed_or_reported(agents: str, tasks: str) -> None:
    documents = parse_crew(agents, tasks)
    for document in (documents.agents, documents.tasks):
        assert not document.is_unreadable or document.problems
        assert all(problem.field.startswith(document.field) and problem.message for problem in document.problems)


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=10), st.dictionaries(st.text(max_size=10), JSON_VALUES, max_size=3)))
def test_any_value_in_any_field_is_parsed_or_reported(value: dict[str, Any]) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    documents = parse_crew(text, text)
    for document in (documents.agents, documents.tasks):
        assert document.is_unreadable or len(document.items) + len(document.problems) >= len(value)


# The order of tasks.


def build_task(key: str, asynchronous: bool = False, context: list[str] | None = None) -> CrewTask:
    return CrewTask(
        key=key,
        path=f"tasks_yaml.{key}",
        name=key,
        description="D",
        expected_output=None,
        agent="a",
        context_references=context,
        tools=[],
        async_execution=asynchronous,
        markdown=False,
        output_file=None,
        context=context,
    )


def list_dependencies(*tasks: CrewTask) -> dict[str, tuple[str, str]]:
    return {key: (" ".join(order.depends_on), " ".join(order.context)) for key, order in order_tasks(tasks).items()}


def test_tasks_depend_on_each_other_as_in_crewai() -> None:
    assert list_dependencies(
        build_task("a"), build_task("b"), build_task("c", context=["a"]), build_task("d", context=[])
    ) == {
        "a": ("", ""),
        "b": ("a", "a"),
        "c": ("a b", "a"),
        "d": ("c", ""),
    }
    assert list_dependencies(
        build_task("a"),
        build_task("b", True),
        build_task("c", True),
        build_task("d"),
        build_task("e", True),
        build_task("f"),
    ) == {
        "a": ("", ""),
        "b": ("a", "a"),
        "c": ("a", "a"),
        "d": ("b c", "a b c"),
        "e": ("d", "a b c d"),
        "f": ("e", "a b c d e"),
    }
    assert list_dependencies(build_task("a", True), build_task("b", True, ["a"]), build_task("c", context=["b"])) == {
        "a": ("", ""),
        "b": ("a", "a"),
        "c": ("a b", "b"),
    }


@st.composite
def draw_tasks(draw: st.DrawFn) -> list[CrewTask]:
    tasks: list[CrewTask] = []
    for number in range(draw(st.integers(0, 8))):
        earlier_keys = [task.key for task in tasks]
        context_keys = st.lists(st.sampled_from(earlier_keys), unique=True) if earlier_keys else st.just(list[str]())
        tasks.append(build_task(f"t{number}", draw(st.booleans()), draw(st.none() | context_keys)))
    return tasks


@given(draw_tasks())
def test_task_order_respects_context_and_asynchronous_tasks(tasks: list[CrewTask]) -> None:
    order = order_tasks(tasks)
    assert list(order) == [task.key for task in tasks]
    ancestors: dict[str, set[str]] = {}
    earlier_keys: list[str] = []
    for task in tasks:
        task_order = order[task.key]
        assert set(task_order.depends_on) <= set(earlier_keys)
        ancestors[task.key] = set(task_order.depends_on).union(*(ancestors[other] for other in task_order.depends_on))
        # Its context is complete when it starts.
        assert set(task_order.context) <= ancestors[task.key]
        if task.context is not None:
            assert task_order.context == task.context
        if not task.async_execution:
            assert ancestors[task.key] == set(earlier_keys)
            assert task.context is not None or task_order.context == earlier_keys
        earlier_keys.append(task.key)
    for number, task in enumerate(tasks):
        if task.async_execution and task.context is None:
            # It waits for no task that was started beside it.
            last = max((place for place in range(number) if not tasks[place].async_execution), default=-1)
            assert ancestors[task.key] == {other.key for other in tasks[: last + 1]}
