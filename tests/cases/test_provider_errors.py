"""Test how errors of providers are recognized in every place and form."""

import json
from typing import Any

import pytest

from tests.cases.test_model_streams import DONE_EVENT, format_chunk, format_event
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.model_agents import create_model_agent, run_execution, stream_events
from tests.support.scripted_model import call_model, call_model_with_body


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("permission", "unauthorized", "You may not use this model"),
        ("content-filter", "refused", "The response was filtered"),
        ("deployment-not-found", "refused", "no such deployment"),
        ("bad-parameters", "refused", "bad schema"),
        ("own-number", "unavailable", "余额不足"),
    ],
)
async def test_refusal_within_a_stream_has_its_kind(serve_case, model: str, kind: str, message: str):
    result = await call_model(await serve_case(find_case_folder("10-refusals-within-a-stream")), model)
    assert result.error is not None
    assert result.error.kind == kind
    assert message in result.error.message


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("vllm-object", "refused", "maximum context length is 4096 tokens"),
        ("event-error", "unavailable", "Overloaded, try later."),
        ("json-200", "refused", "No endpoints found for this model."),
        ("login-page", "malformed", "text/html, not an answer of a model: <!doctype html><title>Sign in"),
        ("done-only", "malformed", "is empty"),
    ],
)
async def test_errors_in_other_shapes_are_recognized(serve_case, model: str, kind: str, message: str):
    result = await call_model(await serve_case(find_case_folder("11-errors-in-other-shapes")), model)
    assert result.error is not None
    assert (result.error.kind, message in result.error.message) == (kind, True), result.error.message


KIND_BY_WORD = [
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
@pytest.mark.parametrize(("word", "kind"), KIND_BY_WORD)
async def test_error_word_has_the_same_kind_in_every_place(field: str, word: str, kind: str):
    error = {"message": "Reason given.", field: word}
    chat_error = (
        await call_model_with_body(format_chunk(content="So far") + format_event({"error": error}) + DONE_EVENT)
    ).error
    anthropic_error = (await call_model_with_body(format_event({"error": error}), provider="anthropic")).error
    responses_error = (
        await call_model_with_body(
            format_event({"type": "response.failed", "response": {"error": error}}), provider="openai"
        )
    ).error
    for error_found in (chat_error, anthropic_error, responses_error):
        assert error_found is not None
        assert (error_found.kind, "Reason given." in error_found.message) == (kind, True)
    if word != "something_new":
        # With a generic status, the word decides as well.
        status_error = (await call_model_with_body(json.dumps({"error": error}), "application/json", status=400)).error
        assert status_error is not None
        assert (status_error.kind, "Reason given." in status_error.message) == (kind, True)


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
async def test_code_outranks_status_and_status_outranks_type(status: int, error: dict[str, Any], kind: str):
    result = await call_model_with_body(
        json.dumps({"error": {"message": "m", **error}}), "application/json", status=status
    )
    assert result.error is not None
    assert result.error.kind == kind


@pytest.mark.parametrize(
    ("body", "kind", "error_kind"),
    [
        ('{"detail": "Reason given."}', "application/json", "unavailable"),
        ('{"detail": [{"loc": ["body"], "msg": "Reason given."}]}', "application/json", "unavailable"),
        (json.dumps({"error": {"message": "Reason given.", "code": 400}}, indent=2), "application/json", "refused"),
        (
            '[{"error": {"message": "Reason given.", "code": 400, "status": "INVALID_ARGUMENT"}}]',
            "application/json",
            "refused",
        ),
        ('{"errors": [{"message": "Reason given.", "code": 404}]}', "application/json", "refused"),
        ('{"error": "Reason given.", "status": 429}', "application/json", "rate_limited"),
        ('{"status_code": 401, "msg": "Reason given."}', "text/plain", "unauthorized"),
        ("Reason given.", "text/plain", "malformed"),
        ("<html><body>Reason given.", "text/html", "malformed"),
        (format_event({"detail": "Reason given."}), "text/event-stream", "unavailable"),
        (format_event({"message": "Reason given."}) + DONE_EVENT, "text/event-stream", "unavailable"),
        (format_event("Reason given.", "error"), "text/event-stream", "unavailable"),
        (
            format_event({"message": "Reason given.", "type": "rate_limit_error"}, "error"),
            "text/event-stream",
            "rate_limited",
        ),
        (
            format_chunk(content="a") + format_event({"error": {"message": "Reason given.", "code": 429}}),
            "text/event-stream",
            "rate_limited",
        ),
        (
            format_chunk(content="a") + '{"error": {"message": "Reason given.", "code": 400}}\n',
            "text/event-stream",
            "refused",
        ),
        (
            format_chunk(content="a") + format_event({"object": "error", "message": "Reason given."}),
            "text/event-stream",
            "unavailable",
        ),
        (
            format_event({"choices": [{"error": {"message": "Reason given.", "code": 502}}]}),
            "text/event-stream",
            "unavailable",
        ),
        (
            format_event({"choices": [], "error": {"message": "Reason given.", "code": "400"}}),
            "text/event-stream",
            "refused",
        ),
        (format_chunk("error") + format_event({"message": "Reason given."}), "text/event-stream", "unavailable"),
    ],
)
async def test_error_message_of_the_provider_is_shown(body: str, kind: str, error_kind: str):
    result = await call_model_with_body(body, kind)
    assert result.error is not None
    assert (result.error.kind, "Reason given." in result.error.message) == (error_kind, True), result.error.message


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"detail": "Reason given."}', "application/json"),
        ('{"error": {"message": "Reason given."}}', "application/json"),
        ("<html>Reason given.", "text/html"),
        (format_event({"message": "Reason given."}), "text/event-stream"),
        (format_event({"type": "error", "error": {"message": "Reason given."}}, "error"), "text/event-stream"),
    ],
)
async def test_error_message_is_shown_for_openai_and_anthropic(provider: str, body: str, kind: str):
    result = await call_model_with_body(body, kind, provider=provider)
    assert result.error is not None
    assert "Reason given." in result.error.message


@pytest.mark.parametrize(
    "error_fields", [{"error": None}, {"error": {}}, {"error": False}, {"error": {"code": 0, "message": ""}}]
)
async def test_empty_error_fields_are_ignored(error_fields: dict[str, Any]):
    data = {**error_fields, "choices": [{"delta": {"content": "Paris."}, "finish_reason": "stop"}]}
    assert (await call_model_with_body(format_event(data))).text == "Paris."


async def test_permanent_errors_are_not_retried(acme: TenantClient, serve_case) -> None:
    url = await serve_case(find_case_folder("11-errors-in-other-shapes"))
    for name, requests in (("vllm-object", 1), ("json-200", 1), ("done-only", 4)):
        before = len((await acme.http.get(f"{url}/log")).json())
        body = {"name": name, "provider": "openai_compatible", "model": name, "base_url": f"{url}/v1"}
        assert (await acme.http.post("/models", json=body)).status_code == 201
        ended = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x")
        assert ended["status"] == "failed"
        assert len((await acme.http.get(f"{url}/log")).json()) - before == requests
        warnings = [event["message"] for event in await stream_events(acme, ended["id"]) if event["type"] == "warning"]
        # The provider did answer, so no warning may deny it.
        assert not any("did not answer" in event for event in warnings)
