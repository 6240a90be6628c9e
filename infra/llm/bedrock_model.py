"""Make requests of Bedrock's Converse: pydantic-ai writes them, and our own guarded connections carry them.

boto3 would take keys, regions and proxies from the process environment, ask the metadata service of the host for keys,
and connect past the guard for outbound requests. So no client of boto3 is ever made: pydantic-ai gets a stand-in that
returns the parameters of the call, botocore signs them with the tenant's key, and httpx sends them.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final, cast
from urllib.parse import quote

import httpx2
import msgspec
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import FileUrl, ModelRequest, ModelResponse, UserPromptPart
from pydantic_ai.models.bedrock import BedrockConverseModel
from pydantic_ai.profiles import merge_profile
from pydantic_ai.providers.bedrock import BedrockProvider

from domain.shared.aws_keys import AwsKey
from infra.llm.eventstream_frames import FramedResponse
from infra.llm.http_calls import open_response
from infra.llm.thinking import choose_effort, take_effort

_SIGNING_NAME: Final = "bedrock"


class _RecordingClient:
    """Return the parameters of a call in place of an answer. pydantic-ai asks nothing else of its client."""

    def __init__(self, url: str) -> None:
        # Without shapes of botocore's own, all fields count as known: the service itself judges them.
        service = SimpleNamespace(shape_for=lambda name: None)
        events = SimpleNamespace(register_first=lambda *args, **kwargs: None)
        self.meta = SimpleNamespace(endpoint_url=url, service_model=service, events=events)
        self.converse_stream = dict


class BedrockWireModel(BedrockConverseModel):
    """Make requests of `ConverseStream`. A region is needed for keys that sign requests."""

    def __init__(self, name: str, url: str, region: str | None, key: AwsKey | None, http: httpx2.AsyncClient) -> None:
        provider = BedrockProvider(bedrock_client=_RecordingClient(url))
        profile = merge_profile(BedrockProvider.model_profile(name), {"may_tokenize_special_tokens_in_content": False})
        super().__init__(name, provider=provider, profile=profile)
        self._url, self._region, self._key, self._http = url, region, key, http

    @asynccontextmanager
    async def request_stream(
        self, messages: Any, model_settings: Any, model_request_parameters: Any, run_context: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Make the request; the response yields server-sent events."""
        _refuse_addresses(messages)
        settings, parameters = self.prepare_request(self._fit_settings(model_settings), model_request_parameters)
        recorded: Any = await self._messages_create(messages, True, cast(Any, settings), parameters)
        call: dict[str, Any] = dict(recorded)
        url = f"{self._url.rstrip('/')}/model/{quote(call.pop('modelId'), safe='')}/converse-stream"
        body = msgspec.json.encode(call)
        async with open_response(self._http, url, body, self._sign_request(url, body), self.model_name) as response:
            yield FramedResponse(response)

    def _fit_settings(self, settings: dict[str, Any]) -> Any:
        """Return settings with pydantic-ai's names."""
        fitted = dict(settings)
        extra = dict(fitted.pop("extra_body", {}))
        thinking = fitted.pop("anthropic_thinking", None)
        effort = take_effort(fitted, extra)
        if thinking is not None and self.profile.get("bedrock_thinking_variant") == "anthropic":
            extra["thinking"] = thinking
        elif thinking is not None:
            fitted["thinking"] = thinking.get("type") != "disabled" and choose_effort(thinking.get("budget_tokens"))
        if effort is not None:
            fitted["thinking"] = effort
        for name in ("extra_headers", "openai_reasoning_effort"):
            fitted.pop(name, None)
        if extra:
            fitted["bedrock_additional_model_requests_fields"] = extra
        return fitted

    def _sign_request(self, url: str, body: bytes) -> dict[str, str]:
        """Return the headers that carry the key, or a signature made with it."""
        if self._key is None:
            return {}
        if self._key.bearer is not None:
            return {"Authorization": f"Bearer {self._key.bearer}"}
        if self._region is None:
            raise UserError("Models of Bedrock need the parameter 'region'.")
        credentials = ReadOnlyCredentials(
            self._key.access_key_id, self._key.secret_access_key, self._key.session_token, None
        )
        request = AWSRequest(method="POST", url=url, data=body, headers={"Content-Type": "application/json"})
        SigV4Auth(credentials, _SIGNING_NAME, self._region).add_auth(request)
        return {name: str(value) for name, value in request.headers.items() if name.lower() != "content-type"}

    def _map_thinking_part(self, part: Any, message: ModelResponse, content: Any, carried_thinking: Any) -> None:
        """Send reasoning back as it came: redacted reasoning is bytes to boto3, and text on the wire."""
        if part.id == "redacted_thinking":
            content.append({"reasoningContent": {"redactedContent": part.signature}})
        else:
            reasoning = {"text": part.content, "signature": part.signature}
            content.append({"reasoningContent": {"reasoningText": reasoning}})


def _refuse_addresses(messages: list[Any]) -> None:
    """Refuse images by address: pydantic-ai would fetch them from here, past the guard. Errors: `UserError`."""
    for message in messages:
        for part in message.parts if isinstance(message, ModelRequest) else ():
            contents = part.content if isinstance(part, UserPromptPart) else getattr(part, "files", ())
            for item in () if isinstance(contents, str) else contents:
                if isinstance(item, FileUrl) and not item.url.startswith("s3://"):
                    raise UserError("Bedrock takes images and files as data, and not by address.")
