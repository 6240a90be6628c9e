"""Measure the usage of one model call: what the provider reported as far as plausible, and an estimate of the rest."""

import pytest

from domain.llms import (
    COUNTED_IMAGE_BYTES,
    ChatMessage,
    MessageImage,
    ModelErrorKind,
    ModelReply,
    ModelUsage,
    ReportedUsage,
    TextDelta,
    ToolCallDelta,
)
from workers.model_calls import UsageMeter

PROMPT_BYTES = 400  # with the overhead of a message
ESTIMATED_TOKENS = PROMPT_BYTES // 4 + 1


def create_meter(sent: bool = True) -> UsageMeter:
    meter = UsageMeter((ChatMessage(role="user", content="x" * (PROMPT_BYTES - 16)),), ())
    if sent:
        meter.note_sent()
    return meter


def list_tokens(usage: ModelUsage) -> tuple[int, int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens


def test_prompt_is_billed_once_sent() -> None:
    assert create_meter(sent=False).measure_usage() == (ModelUsage(), False)
    usage, is_estimated = create_meter().measure_usage()
    assert (list_tokens(usage), is_estimated) == ((ESTIMATED_TOKENS, 0, 0, 0), True)


@pytest.mark.parametrize(
    ("error", "is_billed"),
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
def test_refused_calls_are_free_and_failed_ones_are_billed(error: ModelErrorKind, is_billed: bool) -> None:
    usage, _ = create_meter().measure_usage(error)
    assert usage.prompt_tokens == (ESTIMATED_TOKENS if is_billed else 0)
    meter = create_meter()
    meter.count_part(TextDelta("12345678"))
    usage, is_estimated = meter.measure_usage(error)
    assert (list_tokens(usage), is_estimated) == ((ESTIMATED_TOKENS, 2, 0, 0), True)


@pytest.mark.parametrize("error", [None, "unavailable", "cut_off"])
def test_reported_usage_counts_when_the_call_fails(error: ModelErrorKind | None) -> None:
    meter = create_meter()
    meter.count_part(TextDelta("12345678"))
    meter.count_part(ReportedUsage(prompt_tokens=1000, completion_tokens=5, cached_tokens=4, reasoning_tokens=3))
    usage, is_estimated = meter.measure_usage(error)
    assert (list_tokens(usage), is_estimated) == ((1000, 5, 4, 3), False)


def test_tokens_after_the_report_are_estimated() -> None:
    meter = create_meter()
    meter.count_part(ReportedUsage(prompt_tokens=1000, completion_tokens=1))
    meter.count_part(TextDelta("x" * 40))
    usage, is_estimated = meter.measure_usage("cut_off")
    assert (list_tokens(usage), is_estimated) == ((1000, 11, 0, 0), True)


@pytest.mark.parametrize(
    ("reported", "expected", "is_estimated"),
    [
        (ReportedUsage(completion_tokens=3), (ESTIMATED_TOKENS, 3, 0, 0), True),
        (ReportedUsage(prompt_tokens=7), (7, 2, 0, 0), True),
        (ReportedUsage(prompt_tokens=0, completion_tokens=0), (ESTIMATED_TOKENS, 2, 0, 0), True),
        (ReportedUsage(prompt_tokens=7, completion_tokens=0), (7, 2, 0, 0), True),
        (ReportedUsage(prompt_tokens=-7, completion_tokens=10**12), (ESTIMATED_TOKENS, 2, 0, 0), True),
        (ReportedUsage(prompt_tokens=7, completion_tokens=3, cached_tokens=9, reasoning_tokens=9), (7, 3, 7, 3), False),
    ],
)
def test_implausible_reports_are_ignored(
    reported: ReportedUsage, expected: tuple[int, ...], is_estimated: bool
) -> None:
    meter = create_meter()
    meter.count_part(TextDelta("12345678"))
    meter.count_part(reported)
    usage, was_estimated = meter.measure_usage()
    assert (list_tokens(usage), was_estimated) == (expected, is_estimated)


def test_usage_of_the_answer_counts_without_other_reports() -> None:
    meter = create_meter()
    message = ChatMessage(role="assistant", content="a")
    meter.count_part(ModelReply(message=message, finish="stop", usage=ModelUsage(prompt_tokens=9, completion_tokens=1)))
    assert meter.measure_usage() == (ModelUsage(prompt_tokens=9, completion_tokens=1), False)


def test_empty_arguments_add_no_tokens() -> None:
    meter = create_meter()
    meter.count_part(ToolCallDelta(index=0, id="a", name="list"))
    meter.count_part(ReportedUsage(prompt_tokens=1000, completion_tokens=5))
    meter.count_part(ToolCallDelta(index=0, arguments="{}"))
    usage, is_estimated = meter.measure_usage()
    assert (list_tokens(usage), is_estimated) == ((1000, 5, 0, 0), False)


def test_images_count_for_their_tokens_and_not_for_their_bytes() -> None:
    """Tokens of an image depend on its pixels: a photo of megabytes has no more than a small one."""
    images = tuple(MessageImage(data=b"x" * size, media_type="image/png") for size in (10, 3_000_000))
    meter = UsageMeter((ChatMessage(role="user", content="", parts=images),), ())
    assert meter.prompt_bytes == 16 + 2 * COUNTED_IMAGE_BYTES
