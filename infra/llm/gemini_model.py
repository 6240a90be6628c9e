"""Make requests of Gemini's own API, as a model of pydantic-ai whose stream is the unread response."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import quote

import httpx2
import msgspec
from pydantic_ai.models import Model
from pydantic_ai.models._tool_choice import resolve_tool_choice
from pydantic_ai.profiles import merge_profile
from pydantic_ai.profiles.google import GoogleModelProfile, google_model_profile

from infra.llm import gemini_request
from infra.llm.http_calls import open_response

_RESOURCE_PREFIXES = ("models/", "tunedModels/")


class GeminiWireModel(Model[Any]):
    """Make requests of `streamGenerateContent`. The key goes into a header, never into the address."""

    unsupported_settings = frozenset({"logit_bias", "parallel_tool_calls"})

    def __init__(self, name: str, url: str, key: str, http: httpx2.AsyncClient) -> None:
        super().__init__(
            profile=merge_profile(google_model_profile(name), {"may_tokenize_special_tokens_in_content": False})
        )
        self._name, self._url, self._key, self._http = name, url, key, http

    @property
    def model_name(self) -> str:
        """Return Google's name of the model."""
        return self._name

    @property
    def system(self) -> str:
        """Return the name of the provider."""
        return "google"

    async def request(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: answers are streamed."""
        raise NotImplementedError

    @asynccontextmanager
    async def request_stream(
        self, messages: Any, model_settings: Any, model_request_parameters: Any, run_context: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Make the request; the response is that of httpx."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        system, contents = gemini_request.build_contents(messages)
        system += [{"text": part.content} for part in self._get_instruction_parts(messages, parameters) or ()]
        profile = cast(GoogleModelProfile, self.profile)
        body = {
            "contents": contents,
            **({"systemInstruction": {"parts": system}} if system else {}),
            **gemini_request.build_tools(parameters, resolve_tool_choice(settings, parameters)),
            **gemini_request.build_config(cast(dict[str, Any], settings or {}), parameters, profile),
        }
        headers = {"x-goog-api-key": self._key} if self._key else {}
        async with open_response(
            self._http, self._build_address(), msgspec.json.encode(body), headers, self._name
        ) as response:
            yield response

    def _build_address(self) -> str:
        name = self._name if self._name.startswith(_RESOURCE_PREFIXES) else f"models/{self._name}"
        return f"{self._url}/{quote(name)}:streamGenerateContent?alt=sse"
