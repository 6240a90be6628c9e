"""Manage secrets of agents: sealed at rest, never shown again, and variables of the agents whose versions name them."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import agents
from domain.agents import Agent
from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, FieldError, InvalidField, InvalidFields, NotFound
from domain.shared.masking import MIN_SECRET_CHARACTERS
from domain.shared.names import NameTaken
from domain.shared.pages import Listing, Page
from domain.shared.variables import find_gateway_names, find_name_problem

if TYPE_CHECKING:
    from domain.builds import AgentVersion

MAX_SECRET_BYTES: Final = 64 * 1024
MAX_SECRET_AGENTS: Final = 100
_MAX_NAMED_VERSIONS: Final = 5

SecretName = Annotated[str, Meta(min_length=1, max_length=256, examples=["GITHUB_TOKEN"])]
SecretValue = Annotated[
    str,
    Meta(
        min_length=MIN_SECRET_CHARACTERS,
        max_length=MAX_SECRET_BYTES,
        pattern=r"^[^\x00]*$",
        description="At most 64 KiB of UTF-8. No answer shows it.",
        examples=["ghp_..."],
    ),
]
AgentReferences = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]],
    Meta(max_length=MAX_SECRET_AGENTS, description="Ids or names of the agents that may have it."),
]
SecretSealer = Callable[[bytes], bytes]


class SecretNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Name an agent whose current version names a secret."""

    agent_id: str
    agent_name: str
    version: str


class AgentSecret(msgspec.Struct, kw_only=True):
    """Show a secret without its value.

    `agents` are the ids of the agents that may have it, null for all of the tenant. `needed_by` are the agents whose
    current version names it.
    """

    id: str
    name: str
    agents: list[str] | None
    needed_by: list[SecretNeed] = []
    tenant_id: str
    created_at: datetime
    updated_at: datetime


class SealedSecret(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a secret as it is stored, for the run of an agent."""

    id: str
    name: str
    agents: list[str] | None
    sealed: bytes


class NewSecret(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Store a secret. `name` is the environment variable in which agents find it; without `agents` all may have it."""

    name: SecretName
    value: SecretValue
    agents: AgentReferences | None = None

    def __repr__(self) -> str:
        return f"NewSecret(name={self.name!r})"


class PatchSecret(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a secret. Attempts that begin later have the new `value`; `agents: null` allows it to all agents."""

    value: SecretValue | UnsetType = UNSET
    agents: AgentReferences | None | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"PatchSecret(agents={self.agents!r})"


class Secrets(Protocol):
    """Store the secrets of the bound tenant; `list_sealed` and `replace_sealed` work on all tenants."""

    async def add(self, secret: AgentSecret, sealed: bytes) -> bool: ...
    async def find(self, reference: str, lock: bool = False) -> AgentSecret | None: ...
    async def list_page(self, page: Page) -> Listing[AgentSecret]: ...
    async def save(self, secret: AgentSecret, sealed: bytes | None) -> None: ...
    async def delete(self, secret_id: str) -> None: ...
    async def remove_agent(self, agent_id: str) -> None:
        """Remove a deleted agent from the agents of all secrets."""
        ...

    async def list_by_names(self, names: list[str]) -> list[AgentSecret]:
        """Return the secrets of these names, without what needs them."""
        ...

    async def list_sealed_by_names(self, names: list[str]) -> list[SealedSecret]: ...
    async def list_sealed(self, after: str | None, most: int) -> list[tuple[str, bytes]]:
        """List ids and encrypted values of all tenants, ordered by id."""
        ...

    async def replace_sealed(self, secret_id: str, old: bytes, new: bytes) -> bool:
        """Replace `old` by `new`, if the value is still `old`."""
        ...


def check_secret_name(name: str) -> str:
    """Return a name that an environment variable can have. Errors: `invalid_field`."""
    problem = find_name_problem(name)
    if problem is None and ids.decode_id("secret", name) is not None:
        problem = "must not look like an id."
    if problem is not None:
        raise InvalidField("name", problem)
    return name


def encode_secret_value(value: str) -> bytes:
    """Return a value that can be a variable, and be masked, as bytes. Errors: `invalid_field`, without the value."""
    if len(value.strip()) < MIN_SECRET_CHARACTERS:
        rule = f"must have at least {MIN_SECRET_CHARACTERS} characters besides spaces around them"
        reason = "a shorter one cannot be masked in logs and results"
        raise InvalidField("value", f"{rule}: {reason}. Use the agent's `env` for values that are not secret.")
    try:
        data = value.encode()
    except UnicodeEncodeError:
        raise InvalidField("value", "must not contain half of a surrogate pair.") from None
    if len(data) > MAX_SECRET_BYTES:
        raise InvalidField("value", f"has {len(data)} bytes; at most {MAX_SECRET_BYTES} are allowed.")
    return data


async def create_secret(tx: Tx, caller: Caller, data: NewSecret, seal: SecretSealer) -> AgentSecret:
    """Store a secret. Errors: `conflict` for a taken name, `invalid_field`."""
    secret = AgentSecret(
        id=ids.generate_id("secret"),
        name=check_secret_name(data.name),
        agents=await _resolve_agents(tx, data.agents),
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
    )
    if not await tx.secrets.add(secret, seal(encode_secret_value(data.value))):
        raise NameTaken("secret", secret.name)
    return await get_secret(tx, secret.id)


async def _resolve_agents(tx: Tx, references: list[str] | None) -> list[str] | None:
    """Return the ids of the agents that may have a secret. Errors: `invalid_field` naming each unknown one."""
    if references is None:
        return None
    agent_ids: list[str] = []
    errors: list[FieldError] = []
    for number, reference in enumerate(references):
        field = f"agents[{number}]"
        try:
            agent = await agents.find_agent(tx, reference, field)
        except InvalidField as error:
            errors += error.errors
            continue
        if agent.kind != "code":
            message = f"{agent.name!r} is a model agent; only uploaded agents have secrets."
            errors.append(FieldError(field=field, message=message))
        agent_ids.append(agent.id)
    if errors:
        raise InvalidFields(errors)
    return list(dict.fromkeys(agent_ids))


async def get_secret(tx: Tx, reference: str, lock: bool = False) -> AgentSecret:
    """Return a secret by id or name, without its value. Errors: `not_found`."""
    secret = await tx.secrets.find(reference, lock)
    if secret is None:
        raise NotFound("secret", reference)
    return secret


async def list_secrets(tx: Tx, page: Page) -> Listing[AgentSecret]:
    """List the tenant's secrets, newest first."""
    return await tx.secrets.list_page(page)


async def patch_secret(tx: Tx, reference: str, data: PatchSecret, seal: SecretSealer) -> AgentSecret:
    """Change the fields that were sent, and retire what waits with the old value. Errors: `not_found`."""
    secret = await get_secret(tx, reference, lock=True)
    if data.agents is not UNSET:
        secret.agents = await _resolve_agents(tx, data.agents)
    sealed = None if data.value is UNSET else seal(encode_secret_value(data.value))
    secret.updated_at = tx.now
    await tx.secrets.save(secret, sealed)
    tx.announce_status(secret.id, "changed")
    return secret


async def delete_secret(tx: Tx, reference: str, force: bool) -> None:
    """Delete a secret. Errors: `not_found`, `conflict` naming the versions that need it, unless `force`."""
    secret = await get_secret(tx, reference, lock=True)
    if secret.needed_by and not force:
        needs = [f"{need.version} of {need.agent_name!r}" for need in secret.needed_by]
        more = f" and {len(needs) - _MAX_NAMED_VERSIONS} more" if len(needs) > _MAX_NAMED_VERSIONS else ""
        raise Conflict(
            f"The secret {secret.name} is needed by version {', '.join(needs[:_MAX_NAMED_VERSIONS])}{more}, which "
            "could not be started without it. To delete it all the same, send force=true."
        )
    await tx.secrets.delete(secret.id)
    tx.announce_status(secret.id, "deleted")


async def check_start_settings(tx: Tx, agent: Agent, env: dict[str, str] | None, version: "AgentVersion") -> None:
    """Check that a version of an agent can be started with the agent's variables `env`.

    Errors: `secret_unavailable` naming each secret that is missing or not for this agent, `conflict` for a variable
    that the version's secrets or its gateway set.
    """
    env, names = env or {}, version.secrets or []
    if names:
        problem = explain_missing_secrets(names, await tx.secrets.list_by_names(names), agent.id)
        if problem is not None:
            raise DomainError("secret_unavailable", f"{version.version} of {agent.name!r} is not started: {problem}")
    for name in names:
        if name in env:
            raise Conflict(f"The `env` of {agent.name!r} sets {name}, which is a secret of {version.version}.")
    for name in find_gateway_names(env) if version.models else ():
        raise Conflict(f"The `env` of {agent.name!r} sets {name}, which the sandbox sets for an agent with `models`.")


def explain_missing_secrets(
    names: Iterable[str], secrets: Iterable[AgentSecret | SealedSecret], agent_id: str | None
) -> str | None:
    """Return sentences about the named secrets that do not exist or that an agent may not have; None if it has all."""
    allowed_agents = {secret.name: secret.agents for secret in secrets}
    missing = [name for name in names if name not in allowed_agents]
    refused = [name for name, agent_ids in allowed_agents.items() if not _is_allowed(agent_ids, agent_id)]
    sentences = []
    if missing:
        sentences.append(f"there is no secret {', '.join(missing)}. Add it under /secrets.")
    if refused:
        sentences.append(f"the agent may not have the secret {', '.join(sorted(refused))}. Add it to its `agents`.")
    return " And ".join(sentences) or None


def _is_allowed(agent_ids: list[str] | None, agent_id: str | None) -> bool:
    return agent_ids is None or agent_id in agent_ids
