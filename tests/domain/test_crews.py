"""Crews: the order of their tasks, and their YAML, which is read to the end whatever is wrong with it."""

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

AGENTS = """\
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
TASKS = """\
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
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | PRINTABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3),
    max_leaves=5,
)


def sent(agents: str | None = AGENTS, tasks: str | None = TASKS) -> CrewDocuments:
    return parse_documents(CrewSettings(agents_yaml=agents, tasks_yaml=tasks))


def mistakes(reading: CrewDocuments) -> list[tuple[str, int | None]]:
    return [(one.field, one.line) for one in (*reading.agents.problems, *reading.tasks.problems)]


def test_every_field_of_both_documents_is_read() -> None:
    found = sent()
    assert mistakes(found) == []
    researcher, writer = found.agents.items["researcher"], found.agents.items["writer"]
    assert (researcher.role, researcher.backstory) == ("{topic} Senior Researcher", "You know a lot.")
    assert (researcher.llm, researcher.tools, researcher.temperature) == ("openai/gpt-4o", ["http_request"], 1.0)
    assert (researcher.allow_delegation, researcher.verbose) == (True, True)
    assert (researcher.max_iter, researcher.max_execution_time, researcher.max_tokens) == (7, 90, 300)
    assert (writer.model, writer.verbose, writer.tools) == ("smollm2", None, [])
    research, write = found.tasks.items["research"], found.tasks.items["write"]
    assert research.description == "Look into {topic}.\nAll of it."
    assert (research.async_execution, research.context) == (True, None)
    assert (write.name, write.context, write.tools) == ("The report", ["research"], ["filesystem_write"])
    assert (write.markdown, write.output_file, write.human_input) == (True, "out/report.md", False)


@pytest.mark.parametrize(
    ("document", "text", "field", "line", "words"),
    [
        (
            "agents",
            "a:\n  role: R\n  mood: fine\n",
            "agents_yaml.a.mood",
            3,
            "is not a field here; the fields are role",
        ),
        ("agents", "a:\n  role: R\n\n  max_rpm: 3\n", "agents_yaml.a.max_rpm", 4, "set the crew's max_rpm"),
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
        ("tasks", "t:\n  description: D\n  guardrail: x\n", "tasks_yaml.t.guardrail", 3, "checks its answer"),
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
def test_a_mistake_is_told_with_its_place(document: str, text: str, field: str, line: int | None, words: str) -> None:
    found = sent(agents=text, tasks=None) if document == "agents" else sent(tasks=text)
    (mistake,) = [*found.agents.problems, *found.tasks.problems]
    assert mistake.field.startswith(field)
    assert words in mistake.message
    assert mistake.line is not None
    assert line in (None, mistake.line)
    assert mistake.field_error.field == f"{mistake.field} (line {mistake.line})"


def test_all_mistakes_of_both_documents_are_told_at_once() -> None:
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
    assert mistakes(sent(agents, tasks)) == [
        ("agents_yaml.a.role", 2),
        ("agents_yaml.a.colour", 3),
        ("agents_yaml.a.max_tokens", 4),
        ("agents_yaml.b", 5),
        ("tasks_yaml.t.agent", 3),
        ("tasks_yaml.[?]", 4),
    ]


def test_a_document_that_nobody_can_read_hides_no_mistake_of_the_other() -> None:
    found = sent("a: {\n", "t:\n  colour: red\n")
    assert found.agents.is_unreadable
    assert [field for field, _ in mistakes(found)] == ["agents_yaml", "tasks_yaml.t.colour"]


def test_a_key_that_is_there_twice_hides_nothing_else() -> None:
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
    found = sent(None, tasks)
    assert mistakes(found) == [
        ("tasks_yaml", 8),
        ("tasks_yaml", 13),
        ("tasks_yaml", 16),
        ("tasks_yaml", 17),
        ("tasks_yaml.t.colour", 5),
        ("tasks_yaml.t.agent", 15),
        ("tasks_yaml.v.agent", 19),
        ("tasks_yaml.v.mood", 19),
    ]
    assert (found.tasks.items["t"].description, found.tasks.items["u"].agent) == ("Of several lines", "a")
    # With something besides that nobody can read, both are told.
    assert mistakes(sent(None, "t: {x: 1}\nt: 2\nu: !!str x\n")) == [("tasks_yaml", 2), ("tasks_yaml", 3)]


KEYS = st.text("abc", min_size=1, max_size=2)
BLOCKS = st.dictionaries(KEYS, JSON, min_size=1, max_size=4)


@given(BLOCKS, BLOCKS, st.booleans())
def test_the_first_of_several_keys_stays(one: dict[str, Any], other: dict[str, Any], flow: bool) -> None:
    if flow:
        items = [json.dumps({key: value})[1:-1] for part in (one, other) for key, value in part.items()]
        text = "{" + ", ".join(items) + "}"
    else:
        text = yaml_reader.dump_yaml(one) + yaml_reader.dump_yaml(other)
    document = yaml_reader.read_yaml(text)
    assert [duplicate.key for duplicate in document.duplicates] == [key for key in other if key in one]
    assert document.value == {**other, **one}


def test_a_crew_is_not_endless() -> None:
    many = "\n".join(f"a{number}: {{role: R, goal: G}}" for number in range(MAX_CREW_AGENTS + 1))
    (mistake,) = sent(many, None).agents.problems
    assert f"{MAX_CREW_AGENTS} are allowed" in mistake.message


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_read_or_told_about(agents: str, tasks: str) -> None:
    found = sent(agents, tasks)
    for document in (found.agents, found.tasks):
        assert not document.is_unreadable or document.problems
        assert all(one.field.startswith(document.field) and one.message for one in document.problems)


@given(st.dictionaries(st.text(max_size=10), st.dictionaries(st.text(max_size=10), JSON, max_size=3)))
def test_any_value_in_any_field_is_read_or_told_about(value: dict[str, Any]) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    found = sent(text, text)
    for document in (found.agents, found.tasks):
        assert document.is_unreadable or len(document.items) + len(document.problems) >= len(value)


# the order of tasks


def duty(key: str, asynchronous: bool = False, context: list[str] | None = None) -> CrewTask:
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


def shown(*duties: CrewTask) -> dict[str, tuple[str, str]]:
    return {key: (" ".join(one.depends_on), " ".join(one.context)) for key, one in order_tasks(duties).items()}


def test_tasks_wait_for_one_another_as_crewai_has_it() -> None:
    assert shown(duty("a"), duty("b"), duty("c", context=["a"]), duty("d", context=[])) == {
        "a": ("", ""),
        "b": ("a", "a"),
        "c": ("a b", "a"),
        "d": ("c", ""),
    }
    assert shown(duty("a"), duty("b", True), duty("c", True), duty("d"), duty("e", True), duty("f")) == {
        "a": ("", ""),
        "b": ("a", "a"),
        "c": ("a", "a"),
        "d": ("b c", "a b c"),
        "e": ("d", "a b c d"),
        "f": ("e", "a b c d e"),
    }
    assert shown(duty("a", True), duty("b", True, ["a"]), duty("c", context=["b"])) == {
        "a": ("", ""),
        "b": ("a", "a"),
        "c": ("a b", "b"),
    }


@st.composite
def crews(draw: st.DrawFn) -> list[CrewTask]:
    duties: list[CrewTask] = []
    for number in range(draw(st.integers(0, 8))):
        before = [one.key for one in duties]
        named = st.lists(st.sampled_from(before), unique=True) if before else st.just(list[str]())
        duties.append(duty(f"t{number}", draw(st.booleans()), draw(st.none() | named)))
    return duties


@given(crews())
def test_the_order_of_tasks(duties: list[CrewTask]) -> None:
    order = order_tasks(duties)
    assert list(order) == [one.key for one in duties]
    above: dict[str, set[str]] = {}
    begun: list[str] = []
    for one in duties:
        here = order[one.key]
        assert set(here.depends_on) <= set(begun)
        above[one.key] = set(here.depends_on).union(*(above[other] for other in here.depends_on))
        # What comes with it is there by then.
        assert set(here.context) <= above[one.key]
        if one.context is not None:
            assert here.context == one.context
        if not one.async_execution:
            assert above[one.key] == set(begun)
            assert one.context is not None or here.context == begun
        begun.append(one.key)
    for number, one in enumerate(duties):
        if one.async_execution and one.context is None:
            # It waits for nobody that was begun beside it.
            last = max((place for place in range(number) if not duties[place].async_execution), default=-1)
            assert above[one.key] == {other.key for other in duties[: last + 1]}
