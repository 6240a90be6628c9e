"""Build records for the benchmarks, as callers send them and as rows."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from domain import evaluations
from domain.evaluations import Evaluation
from domain.shared import ids
from domain.stats import RecordKind

MODEL_COUNT, AGENT_COUNT, MODE_COUNT = 4, 5, 2
# One row in so many.
HALLUCINATED_EVERY, RARE_EVERY = 10, 10_000


def build_evaluations(count: int) -> list[dict[str, Any]]:
    """Build evaluations with all scores, as clients send them that measured everything themselves."""
    chance = random.Random(7)  # noqa: S311
    return [
        {
            "prompt": f"What is the capital of country number {number}, and since when has it been its capital?",
            "response": f"The capital of country number {number} is its largest city. " * 3,
            "semantic_drift": round(chance.random(), 4),
            "uncertainty": round(chance.random(), 4),
            "factual_support": round(chance.random(), 4),
            "hallucination_probability": round(chance.random(), 4),
            "hallucinated": number % HALLUCINATED_EVERY == 0,
            "latency_sec": round(chance.lognormvariate(0, 0.7), 4),
            "throughput_qps": round(chance.uniform(1, 50), 3),
            "mode": f"mode-{number % MODE_COUNT}",
            "model_name": f"model-{number % MODEL_COUNT}",
            "agent_name": f"agent-{number % AGENT_COUNT}",
            "session_id": f"session-{number}",
            "metadata": {"number": number},
        }
        for number in range(count)
    ]


def convert_to_rows(
    tenant_id: str, user_id: str, sent: list[dict[str, Any]]
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the columns that the API writes, except the id, and the rows for COPY."""
    news = evaluations.parse_evaluation_batch(msgspec.json.encode(sent))
    evaluations_built = evaluations.build_evaluations(tenant_id, user_id, news, datetime.now(UTC), batch=True)
    names = [name for name in Evaluation.__struct_fields__ if name not in ("id", "computed")]
    user = ids.decode_id("user", user_id)
    as_sent: dict[str, Callable[[Evaluation], Any]] = {
        "user_id": lambda evaluation: user,
        "metadata": lambda evaluation: msgspec.json.encode(evaluation.metadata).decode(),
    }
    rows = [
        tuple(as_sent[name](evaluation) if name in as_sent else getattr(evaluation, name) for name in names)
        for evaluation in evaluations_built
    ]
    return names, rows


def build_artifact(number: int, size: int) -> bytes:
    """Build an artifact of about `size` bytes whose text compresses as prose does, to a third or so."""
    chance = random.Random(number)  # noqa: S311
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(2000)]
    # The text of one large artifact is made of the same few pages over again, in another order each time.
    page = " ".join(chance.choices(words, k=min(size // 6, 20_000)))
    text = page
    while len(text) < size - 700:
        cut = chance.randrange(len(page))
        text += page[cut:] + page[:cut]
    whole = {
        "inputs": {"messages": [{"role": "user", "content": "Summarise what follows."}]},
        "outputs": {"text": ""},
        "llm_config": {"model_name": f"model-{number % MODEL_COUNT}", "provider": "openai", "parameters": {"seed": 7}},
        "token_usage": {"prompt_tokens": 800, "completion_tokens": 120, "total_tokens": 920},
        "duration_ms": 800 + number,
        "cost_usd": 0.0021,
    }
    whole["outputs"] = {"text": text[: size - len(msgspec.json.encode(whole))]}
    return msgspec.json.encode(whole)


def build_row_expressions(kind: RecordKind) -> tuple[str, str]:
    """Return the columns of rows that SQL generates, and their expressions of `n`."""
    latency = "exp(0.7 * sqrt(-2 * ln(1 - random())) * cos(6.283 * random()))"
    expressions: dict[str, str]
    if kind == "evaluations":
        expressions = {
            "prompt": "'What is the capital of country number ' || n",
            "response": "'Its largest city, by far.'",
            "semantic_drift": "random()",
            "uncertainty": "random()",
            "factual_support": "random()",
            "hallucination_probability": "random()",
            "hallucinated": f"hashint8(n) % {HALLUCINATED_EVERY} = 0",
            "latency_sec": latency,
            "throughput_qps": "random() * 50",
            "mode": f"'mode-' || n % {MODE_COUNT}",
            "model_name": f"'model-' || n / {MODE_COUNT} % {MODEL_COUNT}",
            "agent_name": (
                f"CASE WHEN n % {RARE_EVERY} = 0 THEN 'rare' "
                f"ELSE 'agent-' || n / {MODE_COUNT * MODEL_COUNT} % {AGENT_COUNT} END"
            ),
            "metrics": "'sent'",
        }
    else:
        expressions = {
            **dict.fromkeys(("kurral_id", "run_id"), "'kurral-' || n"),
            "received_at": "now()",
            "schema_version": "'1.0.0'",
            "environment": "CASE WHEN n % 4 = 0 THEN 'staging' ELSE 'production' END",
            **dict.fromkeys(("semantic_buckets", "tags"), "'{}'"),
            "deterministic": "n % 3 = 0",
            "replay_level": "CASE WHEN n % 3 = 0 THEN 'A' ELSE 'B' END",
            "determinism_score": "0.5",
            "status": "'ok'",
            "model_name": f"'model-' || n % {MODEL_COUNT}",
            "provider": "'openai'",
            "duration_ms": f"1000 * {latency}",
            "cost_usd": "0.002 * random()",
            "total_tokens": "n % 4000",
            **dict.fromkeys(("tool_calls", "tool_errors"), "0"),
            "size_bytes": "10000 + n % 1000",
            "failures": "''",
        }
    return ", ".join(expressions), ", ".join(expressions.values())
