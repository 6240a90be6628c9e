"""Draw records, times at every boundary, filters and steps for the property test of statistics."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from domain.evaluations import NewEvaluation
from domain.evaluations.scoring import EvaluationScores
from domain.shared import ids
from domain.shared.pages import Page
from domain.shared.times import OLDEST_RECORD_TIME
from domain.stats import RECORD_KINDS

HOUR, DAY, LEASE = timedelta(hours=1), timedelta(days=1), timedelta(minutes=5)
# Beginnings of months, days and hours, a leap day, and the oldest a record may be; the latest is what the clocks show.
PERIOD_STARTS = [
    *(OLDEST_RECORD_TIME, datetime(2027, 12, 31, 23, tzinfo=UTC), datetime(2028, 1, 31, tzinfo=UTC)),
    *(datetime(2028, 2, 1, tzinfo=UTC), datetime(2028, 2, 27, 5, tzinfo=UTC), datetime(2028, 2, 29, tzinfo=UTC)),
    *(datetime(2028, 2, 29, 23, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC), datetime(2028, 3, 1, 1, tzinfo=UTC)),
]
MICRO = timedelta(microseconds=1)
OFFSETS = [timedelta(0), timedelta(0), MICRO, -MICRO, timedelta(minutes=30), timedelta(minutes=45), HOUR, 22 * HOUR]
TIMES = st.builds(
    lambda at, by: max(at + by, OLDEST_RECORD_TIME), st.sampled_from(PERIOD_STARTS), st.sampled_from(OFFSETS)
)
NOWS = [datetime(2028, 3, 1, 0, 30, tzinfo=UTC), datetime(2028, 3, 1, 1, tzinfo=UTC)]


NOWS += [datetime(2028, 2, 29, 23, 59, 59, 999999, tzinfo=UTC), datetime(2028, 4, 1, tzinfo=UTC)]

# Names with a special meaning in SQL, JSON or arrays.
NAMES = ["gpt", "NULL", 'a"b\\,{}', "ü'€ "]
BUCKETS = ["refunds", 'say "no"', "[]"]
NAME = st.sampled_from(NAMES)
SHARE = st.none() | st.sampled_from([0.0, 0.1, 1 / 3, 1.0]) | st.floats(0, 1)
NUMBER = st.none() | st.sampled_from([0.0, 1e-10, 1e-9, 0.1, 2.5e-9, 1.0, 1e6]) | st.floats(0, 1e6)
EVALUATION = st.builds(
    NewEvaluation,
    **{name: st.just(name) for name in ("prompt", "response")},
    **dict.fromkeys(("semantic_drift", "uncertainty", "factual_support", "hallucination_probability"), SHARE),
    **dict.fromkeys(("latency_sec", "throughput_qps"), NUMBER),
    **{name: st.none() | NAME for name in ("mode", "model_name", "agent_name", "session_id")},
    hallucinated=st.sampled_from([None, True, False]),
    created_at=st.none() | TIMES,
)
BATCH = st.lists(EVALUATION, min_size=1, max_size=6)
SCORES = st.builds(
    EvaluationScores,
    **{name: st.floats(0, 1) for name in EvaluationScores.__struct_fields__[:4]},
    hallucinated=st.booleans(),
)
# Scores that no other strategy draws.
OTHERS = EvaluationScores(**dict.fromkeys(EvaluationScores.__struct_fields__[:4], 0.987654321), hallucinated=True)
EXECUTIONS = [ids.encode_id("exec", UUID(int=number)) for number in (1, 2)]
ARTIFACT = st.fixed_dictionaries(
    {"kurral_id": st.sampled_from([f"k{number}" for number in range(6)])},
    optional={
        "created_at": TIMES.map(datetime.isoformat),
        "environment": NAME,
        "deterministic": st.booleans(),
        "replay_level": st.sampled_from("ABC"),
        "llm_config": st.fixed_dictionaries({"model_name": NAME, "provider": NAME}),
        "semantic_buckets": st.lists(st.sampled_from(BUCKETS), max_size=3),
        "error": st.fixed_dictionaries({"type": NAME, "message": st.sampled_from(["broken pipe", "out of memory"])}),
        "cost_usd": NUMBER.filter(lambda value: value is not None),
        "duration_ms": st.integers(0, 10**12) | NUMBER,
        "token_usage": st.fixed_dictionaries({"prompt_tokens": st.integers(0, 10**6)}),
        "run_id": NAME,
        "tags": st.lists(NAME, max_size=2),
        "tenant_id": NAME,
    },
)


def draw_filter(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw values for at most two of these names: with many, a filter would match nothing.

    A number stands for the value of one of the rows.
    """
    own = st.integers(0, 1000)
    named = [st.tuples(st.just(name), values[name] if name == "search" else own | values[name]) for name in values]
    return st.lists(st.one_of(*named), max_size=2).map(dict)


# A number stands for the time of one of the records.
BOUND = st.none() | TIMES | st.integers(0, 1000)
BOUNDS = st.tuples(BOUND, BOUND)
OF_EVALUATIONS = draw_filter(
    hallucinated=st.booleans(),
    **dict.fromkeys(("mode", "model_name", "agent_name", "session_id"), NAME),
    execution_id=st.sampled_from(EXECUTIONS),
    artifact_id=st.just("k0"),
)
OF_ARTIFACTS = draw_filter(
    environment=NAME,
    semantic_bucket=st.sampled_from(BUCKETS),
    deterministic=st.booleans(),
    replay_level=st.sampled_from("ABC"),
    status=st.sampled_from(["ok", "error"]),
    search=st.sampled_from(["memory", "pipe", "Broken"]),
    execution_id=st.sampled_from(EXECUTIONS),
    **dict.fromkeys(("model_name", "provider", "run_id", "tag", "error_type", "labelled_tenant"), NAME),
)
PAGE = st.builds(Page, limit=st.integers(1, 8), offset=st.integers(0, 12))
TENANT, PLACE = st.integers(0, 1), st.integers(0, 1000)
ASK = st.tuples(
    TENANT, OF_EVALUATIONS, OF_ARTIFACTS, BOUNDS, st.integers(1, 90), st.sampled_from(["hour", "day"]), PAGE, PLACE
)
STEP = st.one_of(
    st.tuples(st.just("insert"), TENANT, st.lists(BATCH, min_size=1, max_size=3)),
    st.tuples(st.just("insert"), TENANT, BATCH.map(lambda batch: [batch])),
    st.tuples(st.just("insert"), TENANT, EVALUATION.map(lambda item: [[item]])),
    st.tuples(st.just("delete"), TENANT, st.lists(PLACE, max_size=4)),
    st.tuples(
        *(st.just("compute"), st.integers(1, 9), st.lists(st.none() | SCORES, min_size=1, max_size=4)),
        st.sampled_from(["", "", "twice", "late", "deleted"]),
    ),
    st.tuples(
        st.just("upload"), TENANT, st.lists(ARTIFACT, min_size=1, max_size=5), st.sampled_from([None, *EXECUTIONS])
    ),
    st.tuples(st.just("upload"), TENANT, ARTIFACT.map(lambda item: [item]), st.none()),
    st.tuples(st.just("forget"), TENANT, st.lists(PLACE, max_size=4)),
    st.tuples(st.just("fold"), TENANT, st.sampled_from(RECORD_KINDS), st.integers(1, 7) | st.just(2000)),
    st.tuples(st.just("fold_beside"), TENANT, st.sampled_from(RECORD_KINDS), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("fold_all")),
    st.tuples(st.just("turn_clock"), st.sampled_from(NOWS)),
    st.tuples(st.just("write_to_other_tenant"), TENANT, PLACE),
)
