"""The registry of language models: which provider, at which address, with which key, at what price."""

import math
import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import provider_keys
from domain.llms.messages import ModelApi, ModelPrice
from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller, require_scope
from domain.shared.errors import DomainError, FieldError, Forbidden, InvalidField, InvalidFields, NotFound
from domain.shared.pages import Listing, Page

Provider = Literal["openai", "anthropic", "deepseek", "ollama", "databricks", "openai_compatible", "local"]
ALL_PROVIDERS: Final[tuple[Provider, ...]] = get_args(Provider)
# Their addresses differ for everybody.
PROVIDERS_WITH_URL: Final = frozenset({"openai_compatible", "databricks"})
# The model that comes with Paddock.
LOCAL_MODEL_NAME: Final = "smollm2"
MAX_MODEL_PARAMETERS: Final = 50
_KNOWN: Final[tuple[tuple[re.Pattern[str], Provider], ...]] = (
    (re.compile(r"(gpt-|chatgpt-|text-|o\d)"), "openai"),
    (re.compile(r"claude-"), "anthropic"),
    (re.compile(r"deepseek-"), "deepseek"),
    (re.compile(r"databricks-"), "databricks"),
)
# What a call decides after it was allowed for: another model would answer than the one that is paid for, another prompt
# than the one that was counted, more or longer answers than what was held for it. No parameter of a model, by any name.
RESERVED_PARAMETERS: Final = frozenset(
    {"model", "models", "fallbacks", "route", "messages", "system", "input", "prompt", "instructions", "conversation"}
    | {"conversation_id", "previous_response_id", "stream", "stream_options", "tools", "native_tools", "mcp_servers"}
    | {"tool_choice", "functions", "function_call", "n", "best_of", "num_return_sequences", "num_predict", "background"}
    | {"max_new_tokens", "max_tokens_to_sample", "max_gen_len", "max_length", "container"}
    | {"timeout", "transport", "extra_headers", "extra_query", "headers", "api_base", "base_url"}
)
# How long an answer may be, which a call bounds further: a parameter by these names alone.
_MOST_TOKENS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# Dollars per million tokens below which a price is none: no budget would ever stop such a model.
MIN_BUDGETED_PRICE: Final = 0.001
_SECRETS: Final = re.compile(r"(?i)(api_?key|authorization|password|secret|(access|auth|bearer)_token)")
# Where a word begins in `maxTokens`.
_CAPITAL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NUMBERS: Final = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}

ProviderName = Annotated[Provider, Meta(examples=["openai"])]
ModelName = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x20\x7f]+(?!\n)$", examples=["gpt-4"])]
EntryName = Annotated[str, Meta(min_length=1, max_length=256)]
BaseUrl = Annotated[str, Meta(min_length=1, max_length=2000, examples=["https://api.example.com/v1"])]
KeyName = Annotated[str, Meta(min_length=1, max_length=128, examples=["openai_api_key"])]
ModelParameters = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=64)], Any],
    Meta(max_length=MAX_MODEL_PARAMETERS, examples=[{"temperature": 0.7, "max_tokens": 2000}]),
]
Dollars = Annotated[float, Meta(ge=0, le=1_000_000, description="US dollars per million tokens.")]


class NewModelPrice(ModelPrice, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars per million tokens. Cached prompt tokens cost as much as others unless told."""

    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None


class Model(msgspec.Struct, kw_only=True):
    """A model that agents can be given. `model` is the provider's own name for it, `price` wins over known prices.

    `api` is which of OpenAI's interfaces is used, null for the provider's habit: `responses` for OpenAI, else `chat`.
    `parameters` hold for each call that does not say otherwise. `api_key_name` is a provider key's slug;
    without one, the tenant's only key whose `service` is the provider is used, if there is one.
    """

    id: str
    name: str
    provider: Provider
    model: str
    base_url: str | None
    api_key_name: str | None
    api: ModelApi | None
    parameters: dict[str, Any]
    price: ModelPrice | None
    tenant_id: str
    created_at: datetime
    updated_at: datetime


class NewModel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to register. The name is unique in the tenant and works wherever a model is named."""

    name: Annotated[EntryName, Meta(examples=["custom-gpt-4"])]
    provider: ProviderName
    model: ModelName
    base_url: BaseUrl | None = None
    api_key_name: KeyName | None = None
    api: ModelApi | None = None
    parameters: ModelParameters = {}
    price: NewModelPrice | None = None


class PatchModel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change. `parameters` and `price` are replaced as a whole."""

    name: EntryName | UnsetType = UNSET
    provider: ProviderName | UnsetType = UNSET
    model: ModelName | UnsetType = UNSET
    base_url: BaseUrl | None | UnsetType = UNSET
    api_key_name: KeyName | None | UnsetType = UNSET
    api: ModelApi | None | UnsetType = UNSET
    parameters: ModelParameters | UnsetType = UNSET
    price: NewModelPrice | None | UnsetType = UNSET


class ResolvedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model to call and its key as it lies in the database, if there is one. `model.id` is empty if unregistered."""

    model: Model
    sealed_key: bytes | None


class Llms(Protocol):
    """The models of the bound tenant."""

    async def add(self, model: Model) -> bool: ...
    async def find(self, reference: str, lock: bool = False) -> Model | None: ...
    async def list_page(self, page: Page, provider: Provider | None) -> Listing[Model]: ...
    async def save(self, model: Model) -> bool: ...
    async def delete(self, model_id: str) -> None: ...


def check_base_url(field: str, url: str) -> str:
    """An address that a path can be put behind. Errors: `invalid_field`."""
    try:
        parts = urlsplit(url)
        port_is_right = parts.port != 0
    except ValueError:
        raise InvalidField(field, "is not a URL.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right:
        raise InvalidField(field, "must begin with http:// or https:// and name a host.")
    if "@" in parts.netloc:
        raise InvalidField(field, "must not hold a user or a password; keys are kept under /provider-keys.")
    if parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", url) or set(url) & set('\\"<>^`{|}'):
        raise InvalidField(field, "must be ASCII without a query, a fragment or a space.")
    return url


def check_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters with those that are known of the right type; others pass. Errors: `invalid_field` naming all."""
    wrong: list[FieldError] = []
    for name, value in parameters.items():
        why = _wrong(name, value)
        if why is not None:
            wrong.append(FieldError(field=f"parameters.{name}", message=why))
    if wrong:
        raise InvalidFields(wrong)
    if len(msgspec.json.encode(parameters)) > 16 * 1024:
        raise InvalidField("parameters", "must be at most 16 KiB of JSON.")
    return parameters


def find_token_limit(parameters: dict[str, Any]) -> int | None:
    """Return how long an answer may be by the parameters of a model, by whichever name, `extra_body` included."""
    extra = parameters.get("extra_body")
    sources = [parameters, extra if isinstance(extra, dict) else {}]
    given = [source[name] for source in sources for name in _MOST_TOKENS if name in source]
    return min((value for value in given if type(value) is int and value > 0), default=None)


def _wrong(name: str, value: Any, within: str | None = None) -> str | None:
    """Return what is wrong with a parameter, or with one `within` another."""
    # Servers that fold names, and names that a library has for one provider, mean the same.
    plain = _CAPITAL.sub("_", name.strip()).lower().replace("-", "_")
    bare = plain.removeprefix("openai_").removeprefix("anthropic_")
    if bare in RESERVED_PARAMETERS or (plain != name and plain in (*_MOST_TOKENS, "extra_body")):
        return "is set for each call; it is no parameter of a model."
    if within is not None and plain in _MOST_TOKENS:
        return "bounds the answer: give it as a parameter by itself, as max_tokens."
    if within is not None and plain == "extra_body":
        return "must not be within itself."
    if _SECRETS.fullmatch(name):
        return "looks like a secret; keep it under /provider-keys and name it in api_key_name."
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in _NUMBERS and not (is_number and _NUMBERS[name][0] <= value <= _NUMBERS[name][1]):
        return f"must be a number from {_NUMBERS[name][0]} to {_NUMBERS[name][1]}."
    if name in (*_MOST_TOKENS, "top_k") and not (type(value) is int and 1 <= value <= 10_000_000):
        return "must be a whole number from 1 to 10000000."
    if name == "seed" and not (type(value) is int and abs(value) < 2**63):
        return "must be a whole number."
    if name == "parallel_tool_calls" and not isinstance(value, bool):
        return "must be true or false."
    many = [value] if isinstance(value, str) else value
    if name in ("stop", "stop_sequences") and not (
        isinstance(many, list) and all(isinstance(one, str) for one in many)
    ):
        return "must be a text or a list of texts."
    if name == "logit_bias" and not isinstance(value, dict):
        return "must be an object."
    if name == "extra_body":
        # What goes to the provider as it stands. The same must not be said there either.
        if not isinstance(value, dict):
            return "must be an object."
        return next((f"{one!r} {why}" for one, inner in value.items() if (why := _wrong(one, inner, name))), None)
    return None


def _check(model: Model) -> None:
    names.check_name(model.name, "model", pattern=names.MODEL_NAME_PATTERN, forbidden="control characters")
    if "" in model.name.split("/"):
        raise InvalidField("name", "must not begin or end with /, or hold // : it stands in paths.")
    check_parameters(model.parameters)
    if model.base_url is not None:
        check_base_url("base_url", model.base_url)
    if model.provider in PROVIDERS_WITH_URL and model.base_url is None:
        raise InvalidField("base_url", f"is required for the provider {model.provider!r}.")
    if model.provider == "local":
        for field in ("base_url", "api_key_name"):
            if getattr(model, field) is not None:
                raise InvalidField(field, "has no effect on the local model, which runs here and asks for no key.")
    if model.api is not None and model.provider in ("anthropic", "local"):
        raise InvalidField("api", f"has no effect on models of {model.provider}: there is one interface to them.")


def _check_price(caller: Caller, model: Model) -> None:
    """Refuse a price that no budget counts to those who may not change budgets. The local model is free anyhow."""
    price = model.price
    if price is None or model.provider == "local":
        return
    cached = price.input if price.cached_input is None else price.cached_input
    if min(price.input, price.output, cached) < MIN_BUDGETED_PRICE:
        try:
            require_scope(caller, "write:costs")
        except DomainError as error:
            told = f"`price`: below {MIN_BUDGETED_PRICE} dollars no budget counts it, which only 'write:costs' may say."
            raise Forbidden(f"{told} {error.detail}", "missing_scope") from None


async def create_model(tx: Tx, caller: Caller, data: NewModel) -> Model:
    """Register a model. Errors: `conflict` when the name is taken, `invalid_field` for an unknown key."""
    model = Model(
        id=ids.generate_id("model"),
        name=data.name,
        provider=data.provider,
        model=data.model,
        base_url=data.base_url,
        api_key_name=data.api_key_name,
        api=data.api,
        parameters=data.parameters,
        price=data.price,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
    )
    _check(model)
    _check_price(caller, model)
    if model.api_key_name is not None:
        model.api_key_name = await provider_keys.resolve_key_slug(tx, model.api_key_name, "api_key_name")
    if not await tx.llms.add(model):
        raise names.NameTaken("model", model.name)
    return model


async def add_local_model(tx: Tx, tenant_id: str) -> None:
    """Give a new tenant the model that comes with Paddock."""
    await tx.llms.add(
        Model(
            id=ids.generate_id("model"),
            name=LOCAL_MODEL_NAME,
            provider="local",
            model=LOCAL_MODEL_NAME,
            base_url=None,
            api_key_name=None,
            api=None,
            parameters={},
            price=ModelPrice(input=0.0, output=0.0),
            tenant_id=tenant_id,
            created_at=tx.now,
            updated_at=tx.now,
        )
    )


async def get_model(tx: Tx, reference: str, lock: bool = False) -> Model:
    """A model by id or name. Errors: `not_found`."""
    model = await tx.llms.find(reference, lock)
    if model is None:
        raise NotFound("model", reference)
    return model


async def list_models(tx: Tx, page: Page, provider: Provider | None) -> Listing[Model]:
    """The tenant's models, newest first."""
    return await tx.llms.list_page(page, provider)


async def patch_model(tx: Tx, caller: Caller, reference: str, data: PatchModel) -> Model:
    """Change what was sent. Errors: `not_found`, `conflict` for a taken name, `invalid_field`."""
    model = await get_model(tx, reference, lock=True)
    for field in PatchModel.__struct_fields__:
        value = getattr(data, field)
        if value is not UNSET:
            setattr(model, field, value)
    _check(model)
    if any(getattr(data, field) is not UNSET for field in ("price", "provider", "model", "base_url")):
        # A model that is free must not become another one that is not.
        _check_price(caller, model)
    if model.api_key_name is not None and data.api_key_name is not UNSET:
        model.api_key_name = await provider_keys.resolve_key_slug(tx, model.api_key_name, "api_key_name")
    model.updated_at = tx.now
    if not await tx.llms.save(model):
        raise names.NameTaken("model", model.name)
    return model


async def delete_model(tx: Tx, reference: str) -> None:
    """Remove a model from the registry. Errors: `not_found`."""
    await tx.llms.delete((await get_model(tx, reference, lock=True)).id)


async def resolve_model(tx: Tx, name: str, provider: str | None = None) -> ResolvedModel:
    """The model that an agent means, registered or not, and its key. A key that is missing is no error here.

    `name` is one of the registry, a provider's own name of a model, or `provider/name` as LiteLLM and CrewAI write it.
    Errors: `invalid_field` (`model`, `provider`) when nothing tells whose model that is.
    """
    model = await tx.llms.find(name)
    if model is None:
        asked = name
        before, _, rest = name.partition("/")
        if rest and before in ALL_PROVIDERS and provider in (None, before):
            name, provider = rest, before
            model = await tx.llms.find(name)
        if model is None:
            model = _unregistered(name, provider, tx.now, asked)
        elif provider != model.provider:
            raise InvalidField("model", _unknown_model(asked))
    elif provider not in (None, model.provider):
        raise InvalidField("provider", f"the model {model.name!r} is registered with the provider {model.provider!r}.")
    if model.provider == "local":
        sealed = None
    elif model.api_key_name is None:
        sealed = await tx.provider_keys.find_sealed_for_service(model.provider)
    else:
        sealed = await tx.provider_keys.find_sealed(model.api_key_name)
    return ResolvedModel(model=model, sealed_key=sealed)


def _unknown_model(name: str) -> str:
    """Say what to register for a name that nothing is known of, and how it is referred to then."""
    own = name.partition("/")[2] or name
    return (
        f"there is no model {name!r}: register one of that name under /models, with its provider, the provider's name "
        f"for it (such as {own!r}) and its base_url if it has one; then {name!r} refers to it."
    )


def _unregistered(name: str, provider: str | None, now: datetime, asked: str) -> Model:
    known = [one for one in ALL_PROVIDERS if one == provider]
    if provider is not None and not known:
        raise InvalidField("provider", f"must be one of {', '.join(ALL_PROVIDERS)}.")
    guessed = known or [one for pattern, one in _KNOWN if pattern.match(name)]
    if not guessed:
        raise InvalidField("model", _unknown_model(asked))
    if guessed[0] in PROVIDERS_WITH_URL:
        told = f"{asked!r} needs the address of its provider: register it under /models with a base_url, by this name."
        raise InvalidField("model", told)
    return Model(
        id="",
        name=name,
        provider=guessed[0],
        model=name,
        base_url=None,
        api_key_name=None,
        api=None,
        parameters={},
        price=None,
        tenant_id="",
        created_at=now,
        updated_at=now,
    )
