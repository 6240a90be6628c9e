"""A crew of two agents: one counts with a tool, the other writes. It leaves the article as a file."""

import contextlib
import os
from typing import Any

from crewai import LLM, Agent, Crew, Process, Task
from crewai.tools import tool

FACTS = {"honey": "Bees visit two million flowers for a pound of honey.", "salt": "Salt was once paid as wages."}


@tool("find_fact")
def find_fact(subject: str) -> str:
    """Find a fact about a subject."""
    return FACTS.get(subject.lower(), "Nothing is known about it.")


def build_crew() -> Crew:
    llm = LLM(model=os.environ.get("MODEL", "openai/gpt-5-mini"))
    researcher = Agent(
        role="Researcher",
        goal="Find one fact about {subject}",
        backstory="You check before you say.",
        tools=[find_fact],
        llm=llm,
    )
    writer = Agent(role="Writer", goal="Write about {subject}", backstory="You write short sentences.", llm=llm)
    research = Task(
        description="Find a fact about {subject} with your tool.", expected_output="One fact.", agent=researcher
    )
    article = Task(
        description="Write an article about {subject} from the fact.",
        expected_output="Two sentences.",
        agent=writer,
        context=[research],
        output_file="article.md",
    )
    return Crew(agents=[researcher, writer], tasks=[research, article], process=Process.sequential)


def handle(payload: dict[str, Any]) -> dict[str, Any]:
    # CrewAI writes files into the current folder alone.
    with contextlib.chdir(os.environ.get("PADDOCK_WORK", ".")):
        result = build_crew().kickoff(inputs={"subject": payload.get("subject") or "honey"})
    return {"article": result.raw, "tasks": len(result.tasks_output), "tokens": result.token_usage.total_tokens}
