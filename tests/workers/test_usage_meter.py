"""What one call of a model is billed: what was reported as far as it can be, and an estimate of the rest."""

import pytest

from domain.llms import ChatMessage, ModelErrorKind, ModelReply, ModelUsage, ReportedUsage, TextDelta, ToolCallDelta
from workers.model_calls import UsageMeter

PROMPT = 400  # bytes, with what a message costs by itself
GUESS = PROMPT // 4 + 1


def meter(sent: bool = True) -> UsageMeter:
    one = UsageMeter((ChatMessage(role="user", content="x" * (PROMPT - 16)),), ())
    if sent:
        one.note_sent()
    return one


def tokens(usage: ModelUsage) -> tuple[int, int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens


def test_a_prompt_is_owed_once_it_is_sent() -> None:
    assert meter(sent=False).measure_usage() == (ModelUsage(), False)
    usage, is_estimated = meter().measure_usage()
    assert (tokens(usage), is_estimated) == ((GUESS, 0, 0, 0), True)


@pytest.mark.parametrize(
    ("error", "owes"),
    [
        ("timeout", True),
        ("cut_off", True),
        ("malformed", True),
        ("rate_limited", False),
        ("unavailable", False),
        ("refused", False),
        ("unauthorized", False),
        ("not_allowed", False),
    ],
)
def test_what_was_refused_costs_nothing_and_silence_may(error: ModelErrorKind, owes: bool) -> None:
    usage, _ = meter().measure_usage(error)
    assert usage.prompt_tokens == (GUESS if owes else 0)
    begun = meter()
    begun.count_part(TextDelta("12345678"))
    usage, is_estimated = begun.measure_usage(error)
    assert (tokens(usage), is_estimated) == ((GUESS, 2, 0, 0), True)


@pytest.mark.parametrize("error", [None, "unavailable", "cut_off"])
def test_what_was_reported_counts_also_when_the_call_fails(error: ModelErrorKind | None) -> None:
    one = meter()
    one.count_part(TextDelta("12345678"))
    one.count_part(ReportedUsage(prompt_tokens=1000, completion_tokens=5, cached_tokens=4, reasoning_tokens=3))
    usage, is_estimated = one.measure_usage(error)
    assert (tokens(usage), is_estimated) == ((1000, 5, 4, 3), False)


def test_what_came_after_the_report_is_added_by_estimate() -> None:
    one = meter()
    one.count_part(ReportedUsage(prompt_tokens=1000, completion_tokens=1))
    one.count_part(TextDelta("x" * 40))
    usage, is_estimated = one.measure_usage("cut_off")
    assert (tokens(usage), is_estimated) == ((1000, 11, 0, 0), True)


@pytest.mark.parametrize(
    ("reported", "owed", "is_estimated"),
    [
        (ReportedUsage(completion_tokens=3), (GUESS, 3, 0, 0), True),
        (ReportedUsage(prompt_tokens=7), (7, 2, 0, 0), True),
        (ReportedUsage(prompt_tokens=0, completion_tokens=0), (GUESS, 2, 0, 0), True),
        (ReportedUsage(prompt_tokens=7, completion_tokens=0), (7, 2, 0, 0), True),
        (ReportedUsage(prompt_tokens=-7, completion_tokens=10**12), (GUESS, 2, 0, 0), True),
        (ReportedUsage(prompt_tokens=7, completion_tokens=3, cached_tokens=9, reasoning_tokens=9), (7, 3, 7, 3), False),
    ],
)
def test_reports_of_nothing_for_something_are_not_believed(
    reported: ReportedUsage, owed: tuple[int, ...], is_estimated: bool
) -> None:
    one = meter()
    one.count_part(TextDelta("12345678"))
    one.count_part(reported)
    usage, estimated = one.measure_usage()
    assert (tokens(usage), estimated) == (owed, is_estimated)


def test_an_answer_s_own_usage_counts_where_nothing_else_was_reported() -> None:
    one = meter()
    message = ChatMessage(role="assistant", content="a")
    one.count_part(ModelReply(message=message, finish="stop", usage=ModelUsage(prompt_tokens=9, completion_tokens=1)))
    assert one.measure_usage() == (ModelUsage(prompt_tokens=9, completion_tokens=1), False)


def test_what_a_call_without_arguments_is_given_costs_nothing() -> None:
    one = meter()
    one.count_part(ToolCallDelta(index=0, id="a", name="list"))
    one.count_part(ReportedUsage(prompt_tokens=1000, completion_tokens=5))
    one.count_part(ToolCallDelta(index=0, arguments="{}"))
    usage, is_estimated = one.measure_usage()
    assert (tokens(usage), is_estimated) == ((1000, 5, 0, 0), False)
