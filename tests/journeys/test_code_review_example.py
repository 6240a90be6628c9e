"""Test the workflow of `examples/code_review`, as `make demo` shows it."""

from typing import Any

from scripts import demo
from scripts.demo_workflows import CODE_REVIEW_FOLDER, REVIEWED_CODE, REVIEWED_TESTS, show_code_review
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, wait_for_status

YAML_HEADERS = {"Content-Type": "application/yaml"}


async def test_code_review_demo_runs_on_the_local_model(acme: TenantClient, capsys: Any) -> None:
    checker = demo.pack_example("code_review/checker")
    for _ in range(2):
        # The second time everything exists already.
        await show_code_review(acme.http, demo.show_step, demo.expect_status, checker)
    output = capsys.readouterr().out
    for line in (
        "prices.py:1: unused-import: 'os' is imported and never used.",
        "prices.py:4: mutable-default: total() shares this default among its calls.",
        "prices.py:6: none-equality: None is compared with `is`.",
        "tests: AssertionError: the second call remembers the first",
        "3 of 4 steps done",
    ):
        assert line in output, output


async def test_code_review_reports_problems_and_review(acme: TenantClient, provider: FakeProvider) -> None:
    checker = await acme.create_agent("checker")
    await acme.build_version(checker["id"], demo.pack_example("code_review/checker"))
    reviewer = await create_model_agent(acme, await create_model(acme, provider, "reviewing"), name="reviewer")
    created = await acme.http.post(
        "/workflows", content=(CODE_REVIEW_FOLDER / "workflow.yaml").read_text(), headers=YAML_HEADERS
    )
    assert created.status_code == 201, created.text

    async def run_review(**inputs: Any) -> dict[str, Any]:
        started = await acme.http.post("/workflows/code-review/execute", json={"inputs": {"file": "a.py", **inputs}})
        execution = await wait_for_status(acme, started.json()["id"], "waiting")
        assert [call["call_id"] for call in execution["waiting_for"]] == ["report"]
        await acme.http.post(f"/executions/{execution['id']}/approve")
        return await acme.wait_for_end(execution["id"])

    provider.queue_text("Mend the default first.", to="reviewing")
    failed_review = await run_review(code=REVIEWED_CODE, tests=REVIEWED_TESTS)
    assert failed_review["status"] == "completed", failed_review
    assert [problem["rule"] for problem in failed_review["result"]["problems"]] == [
        "unused-import",
        "mutable-default",
        "none-equality",
    ]
    assert (failed_review["result"]["tests_passed"], failed_review["result"]["report"]) == (False, "report.md")
    report = (await acme.http.get(f"/executions/{failed_review['id']}/files/report.md")).text
    assert "a.py:4: mutable-default" in report
    assert "the second call remembers the first" in report
    assert report.rstrip().endswith("Mend the default first.")
    assert "a.py:4: mutable-default" in provider.requests[-1].get_last_text()

    passed_review = await run_review(code="def one():\n    return 1\n", tests="assert one() == 1", priority="low")
    assert passed_review["result"] == {"file": "a.py", "problems": [], "tests_passed": True, "report": "report.md"}
    assert "review" not in passed_review["results"], "the reviewer was not called"
    provider.queue_failure(400, to="reviewing")
    provider.queue_failure(400, to="reviewing")
    provider.queue_failure(400, to="reviewing")
    unreviewed = await run_review(code="def one(:")
    assert unreviewed["status"] == "completed", "the review is optional"
    assert [problem["rule"] for problem in unreviewed["result"]["problems"]] == ["syntax"]
    report = (await acme.http.get(f"/executions/{unreviewed['id']}/files/report.md")).text
    assert "There are none." in report
    assert report.rstrip().endswith("Nobody was asked.")
    assert reviewer["id"]


async def test_checker_finds_all_problem_kinds(acme: TenantClient) -> None:
    checker = await acme.create_agent("checker")
    await acme.build_version(checker["id"], demo.pack_example("code_review/checker"))
    branches = "".join(f"    if x == {number}:\n        x += 1\n" for number in range(11))
    code = f"""\
import os, json
from sys import path as where
__all__ = ["json"]

def many(x, *, list={{}}):
{branches}    return x
    print("never")

def risky(command):
    try:
        eval(command)
        subprocess.run(command, shell=True)
    except:
        raise
    try:
        pass
    except ValueError:
        pass
    return command is "x" or command != None
"""
    report = (await acme.run_agent(checker["id"], {"file": "x.py", "code": code}))["result"]
    assert [(problem["line"], problem["rule"]) for problem in report["problems"]] == [
        *((1, "unused-import"), (2, "unused-import"), (5, "complex"), (5, "mutable-default"), (5, "shadowed-builtin")),
        *((29, "unreachable"), (33, "eval"), (34, "shell"), (35, "bare-except"), (39, "silent-except")),
        *((41, "literal-identity"), (41, "none-equality")),
    ]
    assert (report["lines"], report["functions"]) == (41, 2)
    clean_report = (
        await acme.run_agent(checker["id"], {"code": "import json\n\n\ndef f(x):\n    return json.dumps(x)\n"})
    )["result"]
    assert (clean_report["problems"], clean_report["summary"]) == ([], "Nothing was found.")
