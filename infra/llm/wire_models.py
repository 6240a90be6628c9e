"""Adapt pydantic-ai's models, which make the requests, so that a stream is the unread response itself.

Provider details hold what a provider wants back with its next request (see `infra.llm.request_builder`).
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from openai import AsyncStream, Omit
from pydantic_ai.messages import ModelResponse, SystemPromptPart, ThinkingPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

from domain.llms import CacheTtl

# Names the thoughts of an answer that Mistral wants back before its content.
MISTRAL_THOUGHTS: Final = "mistral_thoughts"
# Where the definition of a tool holds its mark for the cache.
CACHE_METADATA: Final = "cache"


@dataclass(repr=False)
class MarkedSystemPrompt(SystemPromptPart):
    """Hold a system prompt with a mark for the provider's cache at its end."""

    cache: CacheTtl = "5m"


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


# Settings of OpenAI's that Mistral refuses.
_NOT_OF_MISTRAL: Final = frozenset(
    {"logit_bias", "openai_text_verbosity", "openai_service_tier", "service_tier", "openai_store"}
)


class MistralWireModel(ChatWireModel):
    """Make requests of Mistral's chat completions, which refuse fields of OpenAI's that they do not know."""

    def prepare_request(self, model_settings: Any, model_request_parameters: Any) -> Any:
        """Return settings and parameters, with Mistral's name for the seed."""
        settings, parameters = super().prepare_request(model_settings, model_request_parameters)
        named: dict[str, Any] = {name: value for name, value in (settings or {}).items() if name not in _NOT_OF_MISTRAL}
        if "seed" in named:
            named["extra_body"] = {**named.get("extra_body", {}), "random_seed": named.pop("seed")}
        return named, parameters

    def _get_stream_options(self, model_settings: Any) -> Any:
        return Omit()  # usage comes unasked

    def _get_tool_choice(self, model_settings: Any, model_request_parameters: Any) -> Any:
        tools, choice = super()._get_tool_choice(model_settings, model_request_parameters)
        if choice == "none":
            # With tools at hand Mistral's models write calls as text.
            return [], None
        return tools, "any" if choice == "required" else choice

    async def _map_messages(self, *args: Any, **kwargs: Any) -> Any:
        """Add an answer between the results of tools and a user's message, which Mistral does not accept after them."""
        messages: list[Any] = []
        for message in await super()._map_messages(*args, **kwargs):
            if message["role"] == "user" and messages and messages[-1]["role"] == "tool":
                messages.append({"role": "assistant", "content": "OK"})
            messages.append(message)
        return messages

    def _map_model_response(self, message: ModelResponse) -> Any:
        mapped: Any = super()._map_model_response(message)
        if mapped is not None and (thoughts := mapped.pop(MISTRAL_THOUGHTS, None)):
            content = [{"type": "thinking", "thinking": [{"type": "text", "text": thoughts}]}]
            mapped["content"] = content + ([{"type": "text", "text": text}] if (text := mapped.get("content")) else [])
        return mapped


class ResponsesWireModel(OpenAIResponsesModel):
    """Make requests of OpenAI's Responses."""

    async def _process_streamed_response(self, response: Any, *args: Any, **kwargs: Any) -> Any:
        return response.response

    def _map_response_thinking_part(self, item: ThinkingPart, response_context: Any, context: Any, **more: Any) -> None:
        # Send the item unchanged: pydantic-ai would drop fields that it does not know.
        context.openai_messages.append((item.provider_details or {})["item"])


class AnthropicWireModel(AnthropicModel):
    """Make requests of Anthropic's messages. Marks for the cache stay where they are."""

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

    def _map_tool_definition(self, f: Any, model_settings: Any, **more: Any) -> Any:
        tool: Any = super()._map_tool_definition(f, model_settings, **more)
        if f.metadata and (ttl := f.metadata.get(CACHE_METADATA)) is not None:
            tool["cache_control"] = self._build_cache_control(ttl)
        return tool

    async def _map_message(self, *args: Any) -> Any:
        # By the number of system prompts up to a mark. A model object makes one request.
        self._system_marks: dict[int, CacheTtl] = {}
        return await super()._map_message(*args)

    def _map_system_prompt_part(self, part: Any, standing: bool, request_context: Any, map_context: Any) -> None:
        super()._map_system_prompt_part(part, standing, request_context, map_context)
        if isinstance(part, MarkedSystemPrompt):
            self._system_marks[len(map_context.system_prompt_parts)] = part.cache

    def _build_system_prompt(self, system_prompt_parts: list[str], *args: Any) -> Any:
        """Return one block up to each mark, where pydantic-ai has one for all."""
        prompt = super()._build_system_prompt(system_prompt_parts, *args)
        if not self._system_marks:
            return prompt
        blocks: list[Any] = []
        ends = sorted({*self._system_marks, len(system_prompt_parts)} - {0})
        for begin, end in zip([0, *ends], ends, strict=False):
            block: dict[str, Any] = {"type": "text", "text": "\n\n".join(system_prompt_parts[begin:end])}
            if (ttl := self._system_marks.get(end)) is not None:
                block["cache_control"] = self._build_cache_control(ttl)
            blocks.append(block)
        # What follows are instructions for the form of the answer.
        return [*blocks, *(prompt[1:] if isinstance(prompt, list) else [])]
