"""Provide an example body for every route that takes one. Each works unchanged, in the order of the documentation.

Examples use the names that other examples create (`poet`, `press`, `welcome`), so that a reader can follow the page
with nothing but an account. `tests/api/test_examples.py` sends them all.
"""

from typing import Any, Final

_EVALUATION_BODY: Final = {
    "prompt": "What is the capital of France?",
    "response": "Paris is the capital of France.",
    "retrieved_docs": ["Paris is the capital and largest city of France."],
    "latency_sec": 0.42,
    "model_name": "gpt-4o-mini",
    "agent_name": "qa_assistant",
}
_CREW_BODY: Final = {
    "agents_yaml": "writer: {role: a writer for children, goal: Make facts readable, llm: smollm2, max_tokens: 60}",
    "tasks_yaml": 'write: {description: "Write about {topic}.", expected_output: two sentences, agent: writer}',
}
_TASK_BODY: Final = {
    "name": "summary",
    "description": "Sum up what is known about {topic}.",
    "expected_output": "Three short sentences.",
    "agent": "poet",
}
_GENERATION_BODY: Final = {"description": "An agent that sums up the news of a day.", "model": "smollm2"}

# By operation id; further paths and methods of a handler share its example.
EXAMPLE_BODIES: Final[dict[str, Any]] = {
    "register_user": {"email": "user@example.com", "password": "securepassword123", "full_name": "John Doe"},
    "log_in": {"email": "user@example.com", "password": "securepassword123"},
    "refresh_tokens": {"refresh_token": "the refresh_token that login answered with"},
    "update_me": {"full_name": "John Doe"},
    "update_user": {"role": "viewer"},
    "invite_user": {"email": "colleague@example.com", "role": "member"},
    "update_tenant": {"max_concurrency": 10, "retention_days": 90, "egress": ["api.github.com", "*.openai.com"]},
    "create_key": {
        "name": "ci",
        "description": "Used by the nightly job.",
        "scopes": ["read:agents", "run:agents", "read:executions"],
        "rate_limit_per_minute": 120,
    },
    "update_key": {"description": "Used by the weekly job."},
    "create_agent": {
        "name": "poet",
        "model": "smollm2",
        "instructions": "Answer in one short sentence.",
        "max_tokens": 60,
    },
    "update_agent": {"description": "Writes one short sentence.", "temperature": 0.2},
    "execute_agent": {"task": "Say something about horses.", "timeout": 120},
    "start_execution": {"agent_id": "poet", "task": "Say something about horses.", "timeout": 120},
    "update_execution": {"tags": ["reviewed"], "metadata": {"customer": "7"}},
    "start_bulk_operation": {"action": "cancel", "filter": {"tag": ["reviewed"]}, "dry_run": True},
    "serve_mcp": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
    "approve_execution": {"reason": "Looks right."},
    "reject_execution": {"reason": "Not this file."},
    "generate_name": {"description": "Sum up the news of a day."},
    "upload_artifact": {
        "run_id": "run-42",
        "environment": "production",
        "inputs": {"question": "What is the capital of France?"},
        "outputs": {"answer": "Paris."},
        "llm_config": {"model_name": "gpt-4o-mini", "provider": "openai", "parameters": {"temperature": 0.2}},
        "token_usage": {"prompt": 14, "completion": 2, "total": 16},
        "duration_ms": 420,
        "tags": ["geography"],
    },
    "create_evaluation": _EVALUATION_BODY,
    "upload_metrics": _EVALUATION_BODY,
    "create_evaluation_batch": {"evaluations": [_EVALUATION_BODY, {"prompt": "What is 2 + 2?", "response": "4"}]},
    "create_budget": {"scope": "tenant", "limit_usd": 100, "period": "month"},
    "update_budget": {"limit_usd": 200},
    "create_provider_key": {"name": "openai", "service": "openai", "key": "sk-your-key-as-openai-shows-it"},
    "update_provider_key": {"key": "sk-another-key-as-openai-shows-it"},
    "put_state": {"value": {"count": 1}},
    "create_secret": {"name": "GITHUB_TOKEN", "value": "ghp_the-token-as-github-shows-it"},
    "update_secret": {"value": "ghp_another-token-as-github-shows-it"},
    "create_model": {"name": "fast", "provider": "openai", "model": "gpt-4o-mini", "parameters": {"temperature": 0.2}},
    "update_model": {"parameters": {"temperature": 0.7}},
    "create_tool": {
        "name": "weather",
        "description": "The weather of a city.",
        "configuration": {
            "api_endpoint": "https://api.example.com/weather/{city}",
            "method": "GET",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    "update_tool": {"description": "The weather of a city, now."},
    "execute_tool": {"args": {"path": "notes.txt", "content": "Horses sleep standing up."}},
    "create_template": {
        "name": "greeting",
        "description": "The first sentence of a mail.",
        "template": "Dear {name}, thank you for writing about {topic}.",
    },
    "update_template": {"description": "How a mail begins."},
    "render_template": {"variables": {"name": "Ada", "topic": "horses"}},
    "create_task": _TASK_BODY,
    "update_task": {"expected_output": "Two short sentences."},
    "replace_task": _TASK_BODY,
    "create_crew": {"name": "press", "description": "Writes for children.", **_CREW_BODY},
    "check_crew": _CREW_BODY,
    "update_crew": {"description": "Writes for everybody."},
    "execute_crew": {"inputs": {"topic": "horses"}},
    "create_workflow": {
        "name": "welcome",
        "inputs": {"name": {"type": "string", "required": True}},
        "steps": [
            {"id": "rhyme", "agent": "poet", "prompt": "Say something about {{ inputs.name }}.", "retry": 2},
            {
                "id": "card",
                "tool": "filesystem_write",
                "depends_on": ["rhyme"],
                "requires_approval": True,
                "inputs": {"path": "card.md", "content": "{{ steps.rhyme.outputs.content }}"},
            },
        ],
    },
    "update_workflow": {"description": "A card with a rhyme."},
    "execute_workflow": {"inputs": {"name": "Ada"}},
    "generate_agent": _GENERATION_BODY,
    "generate_task": {"description": "Sum up the news of a day.", "model": "smollm2"},
    "generate_crew": {"description": "A crew that writes a short article about a topic.", "model": "smollm2"},
    "create_schedule": {
        "name": "morning",
        "cron_expression": "0 9 * * *",
        "timezone": "Europe/Berlin",
        "agent_id": "poet",
        "inputs": {"task": "Say something about horses."},
    },
    "create_thread": {"title": "A trip to Rome", "tags": ["travel"]},
    "update_thread": {"tags": ["travel", "italy"]},
    "add_thread_messages": {"messages": [{"role": "user", "content": "What is worth seeing in Rome?"}]},
    "fork_thread": {"at": 0},
    "update_schedule": {"cron_expression": "30 9 * * MON-FRI"},
}


def find_example(operation_id: str) -> Any:
    """Return the example of an operation; `update_agent_put` and `create_key_auth` have that of their handler."""
    while operation_id not in EXAMPLE_BODIES:
        operation_id, separator, _ = operation_id.rpartition("_")
        if not separator:
            return None
    return EXAMPLE_BODIES[operation_id]
