"""Load what a run of uploaded code is given besides its input: its variables, and the network that it may reach."""

import asyncio
from typing import Final

import msgspec

from domain import egress, secrets
from domain.builds import AgentVersion
from domain.egress import EgressEntry
from domain.executions import Execution
from domain.ports import ProgramNetwork, SandboxProgram, Store
from domain.shared.errors import DomainError
from domain.shared.masking import SecretMask
from infra.credentials import Keyring

# The forms of values that are longer than this together are compiled in a thread.
MAX_LOOP_CHARACTERS: Final = 4096


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the environment variables and the network of one run.

    `mask` hides its secrets, None if it has none. `sources` are the ids of the agent and the secrets behind them.
    """

    variables: dict[str, str]
    network: ProgramNetwork | None
    egress: tuple[EgressEntry, ...] = ()
    mask: SecretMask | None = None
    sources: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"RunSettings(variables={sorted(self.variables)}, network={self.network!r})"

    def apply_to(self, program: SandboxProgram) -> SandboxProgram:
        """Return the program with these settings."""
        return msgspec.structs.replace(program, variables=self.variables, network=self.network)


async def load_run_settings(store: Store, keyring: Keyring, execution: Execution, version: AgentVersion) -> RunSettings:
    """Load the settings of an attempt: secrets and policies as they are now.

    Errors: `secret_unavailable`, `egress_not_allowed`.
    """
    entries = egress.parse_entries(version.egress or [])
    if entries:
        await store.run(execution.tenant_id, lambda tx: egress.check_egress(tx, version), retry=True)
    values, secret_ids = await _load_secrets(store, keyring, execution, version.secrets or [])
    mask = None
    if sum(map(len, values.values())) > MAX_LOOP_CHARACTERS:
        mask = await asyncio.to_thread(SecretMask, values.values())
    elif values:
        mask = SecretMask(values.values())
    return RunSettings(
        variables={**(version.env or {}), **(execution.env or {}), **values},
        network=egress.build_network(entries, has_gateway=bool(version.models)),
        egress=entries,
        mask=mask,
        sources=frozenset({execution.agent_id or "", *secret_ids}),
    )


async def _load_secrets(
    store: Store, keyring: Keyring, execution: Execution, names: list[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the values of secrets by name, and their ids. Errors: `secret_unavailable` naming each missing one."""
    if not names:
        return {}, []
    sealed_secrets = await store.run(execution.tenant_id, lambda tx: tx.secrets.list_sealed_by_names(names), retry=True)
    problem = secrets.explain_missing_secrets(names, sealed_secrets, execution.agent_id)
    if problem is not None:
        raise DomainError("secret_unavailable", f"The run cannot have its secrets: {problem}")
    values = {}
    for secret in sealed_secrets:
        try:
            values[secret.name] = keyring.open(secret.sealed).decode()
        except ValueError:
            reason = "it was sealed with a key that PADDOCK_ENCRYPTION_KEYS no longer names."
            raise DomainError("secret_unavailable", f"The secret {secret.name} cannot be opened: {reason}") from None
    return values, [secret.id for secret in sealed_secrets]
