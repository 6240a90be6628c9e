"""Load what a run of uploaded code is given besides its input: its variables, and the network that it may reach."""

import msgspec

from domain.builds import AgentVersion
from domain.executions import Execution
from domain.ports import ProgramNetwork, SandboxProgram, Store


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the environment variables and the network of one run."""

    variables: dict[str, str]
    network: ProgramNetwork | None

    def apply_to(self, program: SandboxProgram) -> SandboxProgram:
        """Return the program with these settings."""
        return msgspec.structs.replace(program, variables=self.variables, network=self.network)


async def load_run_settings(store: Store, execution: Execution, version: AgentVersion) -> RunSettings:
    """Load the settings of a run."""
    return RunSettings(
        variables={**(version.env or {}), **(execution.env or {})},
        network=ProgramNetwork(gateway=True) if version.models else None,
    )
