"""Manage the registry of language models: the provider, address, key and price of each."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import provider_keys
from domain.llms import connection
from domain.llms.messages import ModelApi, ModelPrice
from domain.llms.parameters import ModelParameters, check_parameters
from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller, require_scope
from domain.shared.errors import DomainError, Forbidden, InvalidField, require_found
from domain.shared.pages import Listing, Page
from domain.shared.patches import collect_sent_fields, set_fields

Provider = Literal[
    "openai",
    "anthropic",
    "gemini",
    "bedrock",
    "azure",
    "mistral",
    "groq",
    "openrouter",
    "deepseek",
    "ollama",
    "databricks",
    "openai_compatible",
    "local",
]
ALL_PROVIDERS: Final[tuple[Provider, ...]] = get_args(Provider)
# Every customer has another address there. Bedrock has one for each region.
PROVIDERS_WITH_URL: Final = frozenset({"openai_compatible", "databricks", "azure", "bedrock"})
# Providers with one API, for which `api` would have no effect.
_PROVIDERS_WITHOUT_API: Final = frozenset({"anthropic", "gemini", "bedrock", "mistral", "local"})
# The model that comes with Paddock.
LOCAL_MODEL_NAME: Final = "smollm2"
_PROVIDER_PATTERNS: Final[tuple[tuple[re.Pattern[str], Provider], ...]] = (
    (re.compile(r"(gpt-|chatgpt-|text-|o\d)"), "openai"),
    (re.compile(r"claude-"), "anthropic"),
    (re.compile(r"deepseek-"), "deepseek"),
    (re.compile(r"gemini-"), "gemini"),
    (re.compile(r"(mistral|ministral|magistral|codestral|devstral|pixtral)-"), "mistral"),
    (re.compile(r"databricks-"), "databricks"),
)
# Dollars per million tokens. A lower price counts as free: no budget would ever stop that model.
MIN_BUDGETED_PRICE: Final = 0.001

ProviderName = Annotated[Provider, Meta(examples=["openai"])]
ModelName = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x20\x7f]+(?!\n)$", examples=["gpt-4"])]
EntryName = Annotated[str, Meta(min_length=1, max_length=256)]
BaseUrl = Annotated[str, Meta(min_length=1, max_length=2000, examples=["https://api.example.com/v1"])]
KeyName = Annotated[str, Meta(min_length=1, max_length=128, examples=["openai_api_key"])]
Dollars = Annotated[float, Meta(ge=0, le=1_000_000, description="US dollars per million tokens.")]


class NewModelPrice(ModelPrice, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Set a price in US dollars per million tokens. Without `cached_input`, cached prompt tokens cost the same."""

    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None


class Model(msgspec.Struct, kw_only=True):
    """Describe a model for agents. `model` is the provider's name for it; `price` overrides known prices.

    `api` selects OpenAI's API, null the provider's default: `responses` for OpenAI, else `chat`.
    `parameters` apply to each call that does not override them. `api_key_name` is the slug of a provider key;
    without it, the tenant's only key whose `service` is the provider is used, if any.
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
    """Register a model. The name is unique in the tenant; use it wherever a model is expected."""

    name: Annotated[EntryName, Meta(examples=["custom-gpt-4"])]
    provider: ProviderName
    model: ModelName
    base_url: BaseUrl | None = None
    api_key_name: KeyName | None = None
    api: ModelApi | None = None
    parameters: ModelParameters = {}
    price: NewModelPrice | None = None


class PatchModel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a model. `parameters` and `price` are replaced as a whole."""

    name: EntryName | UnsetType = UNSET
    provider: ProviderName | UnsetType = UNSET
    model: ModelName | UnsetType = UNSET
    base_url: BaseUrl | None | UnsetType = UNSET
    api_key_name: KeyName | None | UnsetType = UNSET
    api: ModelApi | None | UnsetType = UNSET
    parameters: ModelParameters | UnsetType = UNSET
    price: NewModelPrice | None | UnsetType = UNSET


class ResolvedModel(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a model to call, and its encrypted key, if any. `model.id` is empty if the model is not registered."""

    model: Model
    sealed_key: bytes | None


class Llms(Protocol):
    """Store the models of the bound tenant."""

    async def add(self, model: Model) -> bool: ...
    async def find(self, reference: str, lock: bool = False) -> Model | None: ...
    async def list_page(self, page: Page, provider: Provider | None) -> Listing[Model]: ...
    async def save(self, model: Model) -> bool: ...
    async def delete(self, model_id: str) -> None: ...


def check_base_url(field: str, url: str) -> str:
    """Return a URL to which a path can be appended. Errors: `invalid_field`."""
    try:
        parts = urlsplit(url)
        port_is_right = parts.port != 0
    except ValueError:
        raise InvalidField(field, "must be a valid URL.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right:
        raise InvalidField(field, "must begin with http:// or https:// and name a host.")
    if "@" in parts.netloc:
        raise InvalidField(field, "must not contain a user or a password. Store keys under /provider-keys.")
    if parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", url) or set(url) & set('\\"<>^`{|}'):
        raise InvalidField(field, "must be ASCII, without a query, a fragment or spaces.")
    return url


def _check_model(model: Model) -> None:
    names.check_name(model.name, "model", pattern=names.MODEL_NAME_PATTERN, forbidden="control characters")
    if "" in model.name.split("/"):
        raise InvalidField("name", "must not begin or end with /, or contain //.")
    check_parameters(model.parameters)
    if model.base_url is not None:
        check_base_url("base_url", model.base_url)
    connection.check_connection(model.provider, model.base_url, model.parameters)
    if model.provider in PROVIDERS_WITH_URL and not connection.has_address(
        model.provider, model.base_url, model.parameters
    ):
        raise InvalidField("base_url", f"is required for the provider {model.provider!r}.")
    if model.provider == "local":
        for field in ("base_url", "api_key_name"):
            if getattr(model, field) is not None:
                raise InvalidField(
                    field, "has no effect on the local model, which runs here without a key. Leave it out."
                )
    if model.api is not None and model.provider in _PROVIDERS_WITHOUT_API:
        raise InvalidField("api", f"has no effect on models of {model.provider}, which has only one API. Leave it out.")


def _check_price(caller: Caller, model: Model) -> None:
    """Refuse a price that no budget counts, unless the caller may change budgets. The local model is always free."""
    price = model.price
    if price is None or model.provider == "local":
        return
    cached = price.input if price.cached_input is None else price.cached_input
    if min(price.input, price.output, cached) < MIN_BUDGETED_PRICE:
        try:
            require_scope(caller, "write:costs")
        except DomainError as error:
            reason = f"No budget counts a `price` below {MIN_BUDGETED_PRICE} dollars, so it needs 'write:costs'."
            raise Forbidden(f"{reason} {error.detail}", "missing_scope") from None


async def create_model(tx: Tx, caller: Caller, data: NewModel) -> Model:
    """Register a model. Errors: `conflict` for a taken name, `invalid_field` for an unknown key."""
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
    _check_model(model)
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
    """Return a model by id or name. Errors: `not_found`."""
    return require_found("model", reference, await tx.llms.find(reference, lock))


async def list_models(tx: Tx, page: Page, provider: Provider | None) -> Listing[Model]:
    """List the tenant's models, newest first."""
    return await tx.llms.list_page(page, provider)


async def patch_model(tx: Tx, caller: Caller, reference: str, data: PatchModel) -> Model:
    """Change the fields that were sent. Errors: `not_found`, `conflict` for a taken name, `invalid_field`."""
    model = await get_model(tx, reference, lock=True)
    sent = collect_sent_fields(data)
    set_fields(model, sent)
    _check_model(model)
    if sent.keys() & {"price", "provider", "model", "base_url"}:
        # A free model must not become one that costs money.
        _check_price(caller, model)
    if model.api_key_name is not None and "api_key_name" in sent:
        model.api_key_name = await provider_keys.resolve_key_slug(tx, model.api_key_name, "api_key_name")
    model.updated_at = tx.now
    if not await tx.llms.save(model):
        raise names.NameTaken("model", model.name)
    return model


async def delete_model(tx: Tx, reference: str) -> None:
    """Remove a model from the registry. Errors: `not_found`."""
    await tx.llms.delete((await get_model(tx, reference, lock=True)).id)


async def resolve_model(tx: Tx, name: str, provider: str | None = None) -> ResolvedModel:
    """Return the model that an agent names, registered or not, and its key. A missing key is not an error here.

    `name` is a name in the registry, a provider's name of a model, or `provider/name` as LiteLLM and CrewAI write it.
    Errors: `invalid_field` (`model`, `provider`) if the provider cannot be determined.
    """
    model = await tx.llms.find(name)
    if model is None:
        reference = name
        prefix, _, rest = name.partition("/")
        if rest and prefix in ALL_PROVIDERS and provider in (None, prefix):
            name, provider = rest, prefix
            model = await tx.llms.find(name)
        if model is None:
            model = _guess_model(name, provider, tx.now, reference)
        elif provider != model.provider:
            raise InvalidField("model", _explain_unknown_model(reference))
    elif provider not in (None, model.provider):
        raise InvalidField(
            "provider", f"must be {model.provider!r}, with which the model {model.name!r} is registered."
        )
    if model.provider == "local":
        sealed = None
    elif model.api_key_name is None:
        sealed = await tx.provider_keys.find_sealed_for_service(model.provider)
    else:
        sealed = await tx.provider_keys.find_sealed(model.api_key_name)
    return ResolvedModel(model=model, sealed_key=sealed)


def _explain_unknown_model(name: str) -> str:
    """Return what to register for an unknown name, and how agents refer to it afterwards."""
    provider_name = name.partition("/")[2] or name
    return (
        f"names no known model: {name!r}. Register a model with that name under /models, with its provider, the "
        f"provider's name for it (for example {provider_name!r}) and its base_url if it has one."
    )


def _guess_model(name: str, provider: str | None, now: datetime, reference: str) -> Model:
    named = [candidate for candidate in ALL_PROVIDERS if candidate == provider]
    if provider is not None and not named:
        raise InvalidField("provider", f"must be one of {', '.join(ALL_PROVIDERS)}.")
    guesses = named or [candidate for pattern, candidate in _PROVIDER_PATTERNS if pattern.match(name)]
    if not guesses:
        raise InvalidField("model", _explain_unknown_model(reference))
    if guesses[0] in PROVIDERS_WITH_URL:
        address = "its region in `parameters`" if guesses[0] == "bedrock" else "a base_url"
        message = f"{reference!r} needs an address. Register a model with this name and {address} under /models."
        raise InvalidField("model", message)
    return Model(
        id="",
        name=name,
        provider=guesses[0],
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
