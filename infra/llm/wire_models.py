"""Adapt pydantic-ai's models, which make the requests, so that a stream is the unread response itself.

Provider details hold what a provider wants back with its next request (see `infra.llm.request_builder`).
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncStream
from pydantic_ai.messages import ModelResponse, ThinkingPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel


class ChatWireModel(OpenAIChatModel):
    """Make requests of OpenAI's chat completions."""

    async def _process_streamed_response(self, response: AsyncStream[Any], *args: Any, **kwargs: Any) -> Any:
        return response.response

    def accepts_stateless_artifacts(self, response: ModelResponse, part: Any = None) -> bool:
        """Send all artifacts back: `request_builder` has already removed those of other providers."""
        return True

    def _map_model_response(self, message: ModelResponse) -> Any:
        mapped: Any = super()._map_model_response(message)
        if mapped is not None:
            mapped.update((message.provider_details or {}).get("fields", {}))
        return mapped


class ResponsesWireModel(OpenAIResponsesModel):
    """Make requests of OpenAI's Responses."""

    async def _process_streamed_response(self, response: Any, *args: Any, **kwargs: Any) -> Any:
        return response.response

    def _map_response_thinking_part(self, item: ThinkingPart, response_context: Any, context: Any, **more: Any) -> None:
        # Send the item unchanged: pydantic-ai would drop fields that it does not know.
        context.openai_messages.append((item.provider_details or {})["item"])


class AnthropicWireModel(AnthropicModel):
    """Make requests of Anthropic's messages."""

    @asynccontextmanager
    async def request_stream(
        self, messages: Any, model_settings: Any, model_request_parameters: Any, run_context: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Make the request; the response is that of httpx."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        prepared: Any = settings or {}
        response: Any = await self._messages_create(messages, True, prepared, parameters)
        async with response:
            yield response.response

    async def _create_message(  # noqa: PLR0913 - prescribed by the class that it overrides
        self,
        client: Any,
        messages: Any,
        model_settings: Any,
        prepared: Any,
        stream: bool,
        container_param: Any,
        thinking: Any,
        betas: set[str],
        thinking_override: dict[str, object] | None,
    ) -> Any:
        """Send the request, and read nothing of the answer: pydantic-ai would look at its first event here."""
        body: Any = self._messages_create_params(
            messages,
            model_settings,
            prepared,
            container_param,
            thinking,
            thinking_override,
        )
        more = {"betas": sorted(betas)} if betas else {}
        return await client.beta.messages.create(
            **body, **more, stream=True, timeout=model_settings["timeout"], extra_headers=prepared.extra_headers
        )

    def accepts_stateless_artifacts(self, response: ModelResponse, part: Any = None) -> bool:
        """Send all artifacts back: `request_builder` has already removed those of other providers."""
        return True
