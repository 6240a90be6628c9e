"""An import finds an empty work folder, however long it takes and however much it prints; the call finds the files."""

from pathlib import Path

import msgspec
import pytest

from domain.ports import ProgramHooks, SandboxProgram
from domain.work_folder import WorkFolder
from infra.sandbox.process_tree import MAX_EARLY_OUTPUT_BYTES
from tests.support.sandbox_runs import SANDBOX_BACKENDS, open_sandbox

SOURCE = f"""
import os, time
for _ in range({MAX_EARLY_OUTPUT_BYTES} // 1000 + 2):
    print("x" * 1000, flush=True)
time.sleep(0.5)
AT_IMPORT = os.listdir("/work")
def handle(payload):
    return [AT_IMPORT, os.listdir("/work")]
"""


async def fill_folder(folder: WorkFolder) -> None:
    folder.write_file("data.csv", b"1,2")


@pytest.mark.parametrize("backend", SANDBOX_BACKENDS)
async def test_files_are_written_after_the_import(backend: str, readable_folder: Path) -> None:
    (readable_folder / "agent.py").write_text(SOURCE)
    program = SandboxProgram(
        code=readable_folder, environment=None, entrypoint="agent:handle", timeout=20, memory_mb=256
    )
    printed_bytes = 0

    def count_output(_: str, data: bytes) -> None:
        nonlocal printed_bytes
        printed_bytes += len(data)

    async with open_sandbox(backend, warm_mb=256) as sandbox:
        outcome = await sandbox.run_program(program, b"{}", count_output, ProgramHooks(fill_work=fill_folder))
    assert outcome.output is not None, outcome
    assert msgspec.json.decode(outcome.output) == [[], ["data.csv"]]
    assert printed_bytes > MAX_EARLY_OUTPUT_BYTES
