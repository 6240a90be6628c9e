"""Check the parameters of a model: what may be sent to its provider with each call."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from domain.shared.errors import FieldError, InvalidField, InvalidFields

MAX_MODEL_PARAMETERS: Final = 50
# Set for each call after its budget is reserved. As parameters of a model they would change which model answers, the
# prompt that was counted, or the number and length of the answers. They are refused under every spelling.
RESERVED_PARAMETERS: Final = frozenset(
    {"model", "models", "fallbacks", "route", "messages", "system", "input", "prompt", "instructions", "conversation"}
    | {"conversation_id", "previous_response_id", "stream", "stream_options", "tools", "native_tools", "mcp_servers"}
    | {"tool_choice", "functions", "function_call", "n", "best_of", "num_return_sequences", "num_predict", "background"}
    | {"max_new_tokens", "max_tokens_to_sample", "max_gen_len", "max_length", "container"}
    # Gemini's and Bedrock's names for them.
    | {"contents", "system_instruction", "tool_config", "cached_content", "generation_config", "candidate_count"}
    | {"inference_config", "additional_model_request_fields", "prompt_variables"}
    | {"additional_model_requests_fields", "inference_profile"}
    | {"timeout", "transport", "extra_headers", "extra_query", "headers", "api_base", "base_url"}
)
# The limit of an answer, which a call may lower: a parameter only under these names.
_TOKEN_LIMIT_NAMES: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_SECRET_NAMES: Final = re.compile(r"(?i)(api_?key|authorization|password|secret|(access|auth|bearer)_token)")
# Finds where a word begins in `maxTokens`.
_CAMEL_CASE_BOUNDARY: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

ModelParameters = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=64)], Any],
    Meta(max_length=MAX_MODEL_PARAMETERS, examples=[{"temperature": 0.7, "max_tokens": 2000}]),
]


def _accept_numbers(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _accept_whole_numbers(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


# By parameter, which values are right, and what to tell the client about others.
_VALUE_RULES: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "temperature": (_accept_numbers(0, 2), "must be a number from 0 to 2."),
    "top_p": (_accept_numbers(0, 1), "must be a number from 0 to 1."),
    **dict.fromkeys(
        ("presence_penalty", "frequency_penalty"), (_accept_numbers(-2, 2), "must be a number from -2 to 2.")
    ),
    **dict.fromkeys(
        (*_TOKEN_LIMIT_NAMES, "top_k"),
        (_accept_whole_numbers(1, 10_000_000), "must be a whole number from 1 to 10000000."),
    ),
    "seed": (_accept_whole_numbers(1 - 2**63, 2**63 - 1), "must be a whole number."),
    "parallel_tool_calls": (lambda value: isinstance(value, bool), "must be true or false."),
    **dict.fromkeys(("stop", "stop_sequences"), (_is_text_or_texts, "must be a string or a list of strings.")),
    **dict.fromkeys(("logit_bias", "extra_body"), (lambda value: isinstance(value, dict), "must be an object.")),
}


def check_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters whose known ones have the right type; unknown ones pass.

    Errors: `invalid_field` names every parameter at fault.
    """
    errors: list[FieldError] = []
    for name, value in parameters.items():
        problem = _find_parameter_problem(name, value)
        if problem is not None:
            errors.append(FieldError(field=f"parameters.{name}", message=problem))
    if errors:
        raise InvalidFields(errors)
    if len(msgspec.json.encode(parameters)) > 16 * 1024:
        raise InvalidField("parameters", "must be at most 16 KiB of JSON.")
    return parameters


def find_token_limit(parameters: dict[str, Any]) -> int | None:
    """Return the lowest token limit in the parameters of a model, under any of its names, also in `extra_body`."""
    extra = parameters.get("extra_body")
    sources = [parameters, extra if isinstance(extra, dict) else {}]
    limits = [source[name] for source in sources for name in _TOKEN_LIMIT_NAMES if name in source]
    return min((value for value in limits if type(value) is int and value > 0), default=None)


def _find_parameter_problem(name: str, value: Any, within: str | None = None) -> str | None:
    """Return what is wrong with a parameter, or with one inside the parameter `within`."""
    if (name_problem := _find_name_problem(name, within)) is not None:
        return name_problem
    if name in _VALUE_RULES:
        is_right, value_problem = _VALUE_RULES[name]
        if not is_right(value):
            return value_problem
    if name == "extra_body":
        # It is sent to the provider unchanged, so the same rules apply to its content.
        problems = ((inner, _find_parameter_problem(inner, entry, name)) for inner, entry in value.items())
        return next((f"{inner!r} {problem}" for inner, problem in problems if problem), None)
    return None


def _find_name_problem(name: str, within: str | None) -> str | None:
    """Return why no parameter may have this name."""
    # Some servers ignore case and dashes, and libraries have prefixed names for one provider.
    plain = _CAMEL_CASE_BOUNDARY.sub("_", name.strip()).lower().replace("-", "_")
    bare = plain.removeprefix("openai_").removeprefix("anthropic_").removeprefix("bedrock_")
    if bare in RESERVED_PARAMETERS or (plain != name and plain in (*_TOKEN_LIMIT_NAMES, "extra_body")):
        return "is set for each call and cannot be a parameter of a model."
    if within is not None and plain in _TOKEN_LIMIT_NAMES:
        return "limits the answer. Send it as the parameter max_tokens instead."
    if within is not None and plain == "extra_body":
        return "must not contain itself."
    if _SECRET_NAMES.fullmatch(name):
        return "looks like a secret. Store it under /provider-keys and name it in api_key_name."
    return None
