"""What providers say went wrong, wherever and in whichever form they say it."""

import json
from typing import Any

import pytest

from tests.cases.test_streams import DONE, chunk, event
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.model_agents import create_model_agent, run_execution, stream_events
from tests.support.scripted_model import call_model, call_model_with_body


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("permission", "unauthorized", "You may not use this model"),
        ("content-filter", "refused", "The response was filtered"),
        ("deployment-not-found", "refused", "no such deployment"),
        ("bad-parameters", "refused", "bad schema"),
        ("own-number", "unavailable", "余额不足"),
    ],
)
async def test_refusals_within_a_stream(serve_case, model: str, kind: str, words: str):
    played = await call_model(await serve_case(find_case_folder("10-refusals-within-a-stream")), model)
    assert played.error is not None
    assert played.error.kind == kind
    assert words in played.error.message


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("vllm-object", "refused", "maximum context length is 4096 tokens"),
        ("event-error", "unavailable", "Overloaded, try later."),
        ("json-200", "refused", "No endpoints found for this model."),
        ("login-page", "malformed", "text/html, not an answer of a model: <!doctype html><title>Sign in"),
        ("done-only", "malformed", "is empty"),
    ],
)
async def test_errors_in_other_shapes(serve_case, model: str, kind: str, words: str):
    played = await call_model(await serve_case(find_case_folder("11-errors-in-other-shapes")), model)
    assert played.error is not None
    assert (played.error.kind, words in played.error.message) == (kind, True), played.error.message


WORDS = [
    ("rate_limit_exceeded", "rate_limited"),
    ("rate_limit_error", "rate_limited"),
    ("RESOURCE_EXHAUSTED", "rate_limited"),
    ("ThrottlingException", "rate_limited"),
    ("TooManyRequests", "rate_limited"),
    ("insufficient_quota", "refused"),
    ("insufficient_balance", "refused"),
    ("Arrearage", "refused"),
    ("billing_hard_limit_reached", "refused"),
    ("invalid_api_key", "unauthorized"),
    ("authentication_error", "unauthorized"),
    ("AccessDenied", "unauthorized"),
    ("PERMISSION_DENIED", "unauthorized"),
    ("context_length_exceeded", "refused"),
    ("model_not_found", "refused"),
    ("INVALID_ARGUMENT", "refused"),
    ("BadRequestError", "refused"),
    ("UnsupportedParamsError", "refused"),
    ("data_inspection_failed", "refused"),
    ("overloaded_error", "unavailable"),
    ("engine_overloaded_error", "unavailable"),
    ("server_error", "unavailable"),
    ("InternalServerError", "unavailable"),
    ("request_timeout", "timeout"),
    ("something_new", "unavailable"),
]


@pytest.mark.parametrize("field", ["code", "type"])
@pytest.mark.parametrize(("word", "kind"), WORDS)
async def test_words_mean_the_same_wherever_they_stand(field: str, word: str, kind: str):
    error = {"message": "So it is.", field: word}
    inside = (await call_model_with_body(chunk(content="So far") + event({"error": error}) + DONE)).error
    alone = (await call_model_with_body(event({"error": error}), provider="anthropic")).error
    failed = (
        await call_model_with_body(event({"type": "response.failed", "response": {"error": error}}), provider="openai")
    ).error
    for told in (inside, alone, failed):
        assert told is not None
        assert (told.kind, "So it is." in told.message) == (kind, True)
    if word != "something_new":
        # With a status that says nothing in particular, the word counts as well.
        outside = (await call_model_with_body(json.dumps({"error": error}), "application/json", status=400)).error
        assert outside is not None
        assert (outside.kind, "So it is." in outside.message) == (kind, True)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, {"type": "invalid_request_error", "code": None}, "unauthorized"),
        (429, {"type": "invalid_request_error"}, "rate_limited"),
        (429, {"code": "insufficient_quota", "type": "insufficient_quota"}, "refused"),
        (500, {"type": "invalid_request_error"}, "unavailable"),
        (503, {"code": "model_not_found"}, "refused"),
        (403, {"code": "content_filter"}, "refused"),
        (400, {"code": 400}, "refused"),
    ],
)
async def test_a_status_goes_before_a_type_and_a_code_before_both(status: int, error: dict[str, Any], kind: str):
    played = await call_model_with_body(
        json.dumps({"error": {"message": "m", **error}}), "application/json", status=status
    )
    assert played.error is not None
    assert played.error.kind == kind


@pytest.mark.parametrize(
    ("body", "kind", "error_kind"),
    [
        ('{"detail": "So it is."}', "application/json", "unavailable"),
        ('{"detail": [{"loc": ["body"], "msg": "So it is."}]}', "application/json", "unavailable"),
        (json.dumps({"error": {"message": "So it is.", "code": 400}}, indent=2), "application/json", "refused"),
        (
            '[{"error": {"message": "So it is.", "code": 400, "status": "INVALID_ARGUMENT"}}]',
            "application/json",
            "refused",
        ),
        ('{"errors": [{"message": "So it is.", "code": 404}]}', "application/json", "refused"),
        ('{"error": "So it is.", "status": 429}', "application/json", "rate_limited"),
        ('{"status_code": 401, "msg": "So it is."}', "text/plain", "unauthorized"),
        ("So it is.", "text/plain", "malformed"),
        ("<html><body>So it is.", "text/html", "malformed"),
        (event({"detail": "So it is."}), "text/event-stream", "unavailable"),
        (event({"message": "So it is."}) + DONE, "text/event-stream", "unavailable"),
        (event("So it is.", "error"), "text/event-stream", "unavailable"),
        (event({"message": "So it is.", "type": "rate_limit_error"}, "error"), "text/event-stream", "rate_limited"),
        (
            chunk(content="a") + event({"error": {"message": "So it is.", "code": 429}}),
            "text/event-stream",
            "rate_limited",
        ),
        (chunk(content="a") + '{"error": {"message": "So it is.", "code": 400}}\n', "text/event-stream", "refused"),
        (chunk(content="a") + event({"object": "error", "message": "So it is."}), "text/event-stream", "unavailable"),
        (event({"choices": [{"error": {"message": "So it is.", "code": 502}}]}), "text/event-stream", "unavailable"),
        (event({"choices": [], "error": {"message": "So it is.", "code": "400"}}), "text/event-stream", "refused"),
        (chunk("error") + event({"message": "So it is."}), "text/event-stream", "unavailable"),
    ],
)
async def test_the_provider_s_own_words_are_shown(body: str, kind: str, error_kind: str):
    played = await call_model_with_body(body, kind)
    assert played.error is not None
    assert (played.error.kind, "So it is." in played.error.message) == (error_kind, True), played.error.message


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"detail": "So it is."}', "application/json"),
        ('{"error": {"message": "So it is."}}', "application/json"),
        ("<html>So it is.", "text/html"),
        (event({"message": "So it is."}), "text/event-stream"),
        (event({"type": "error", "error": {"message": "So it is."}}, "error"), "text/event-stream"),
    ],
)
async def test_the_provider_s_own_words_on_other_wires(provider: str, body: str, kind: str):
    played = await call_model_with_body(body, kind, provider=provider)
    assert played.error is not None
    assert "So it is." in played.error.message


@pytest.mark.parametrize(
    "odd", [{"error": None}, {"error": {}}, {"error": False}, {"error": {"code": 0, "message": ""}}]
)
async def test_what_is_no_error_is_none(odd: dict[str, Any]):
    told = {**odd, "choices": [{"delta": {"content": "Paris."}, "finish_reason": "stop"}]}
    assert (await call_model_with_body(event(told))).text == "Paris."


async def test_one_request_where_repeating_cannot_help(acme: TenantClient, serve_case) -> None:
    url = await serve_case(find_case_folder("11-errors-in-other-shapes"))
    for name, requests in (("vllm-object", 1), ("json-200", 1), ("done-only", 4)):
        before = len((await acme.http.get(f"{url}/log")).json())
        body = {"name": name, "provider": "openai_compatible", "model": name, "base_url": f"{url}/v1"}
        assert (await acme.http.post("/models", json=body)).status_code == 201
        ended = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x")
        assert ended["status"] == "failed"
        assert len((await acme.http.get(f"{url}/log")).json()) - before == requests
        warnings = [one["message"] for one in await stream_events(acme, ended["id"]) if one["type"] == "warning"]
        # An answer came: nobody says that there was none.
        assert not any("did not answer" in one for one in warnings)
