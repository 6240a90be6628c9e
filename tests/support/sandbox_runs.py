"""Run programs in sandboxes, count what they leave behind, and run system call filters."""

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from domain.ports import SandboxProgram
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.warm_sandbox import WarmSandbox

SANDBOX_BACKENDS: Final = ("bubblewrap", "forkserver", "bubblewrap-warm", "forkserver-warm")


@contextlib.asynccontextmanager
async def open_sandbox(backend: str, warm_mb: int) -> AsyncIterator[WarmSandbox]:
    """Open a sandbox of one of the backends; those called `-warm` keep slots in so much memory."""
    server = ForkServerBackend() if backend.startswith("forkserver") else None
    sandbox = WarmSandbox(BubblewrapSandbox(), server, warm_mb if backend.endswith("-warm") else 0)
    yield sandbox
    await sandbox.close()


def ignore_output(_: str, __: bytes) -> None:
    return None


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def wait_until_released(descriptors: int, tasks: int) -> None:
    """Wait until counts are down again: an answer arrives a moment before its process tree is gone."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while count_descriptors() > descriptors or len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.005)
    assert count_descriptors() <= descriptors
    assert len(asyncio.all_tasks()) <= tasks


async def measure_idle(cold_sandbox: WarmSandbox, program: SandboxProgram) -> tuple[int, int]:
    """Return the numbers of descriptors and tasks while nothing runs, after everything lasting was started."""
    quick = msgspec.structs.replace(program, entrypoint="json:dumps")
    await cold_sandbox.run_program(quick, b"{}", ignore_output)
    await asyncio.sleep(0.1)
    return count_descriptors(), len(asyncio.all_tasks())


def run_filter(data: bytes, machine: int, number: int, *arguments: int) -> int:
    """Run the filter as the kernel does."""
    packet = struct.pack("=iIQ6Q", number, machine, 0, *(list(arguments) + [0] * 6)[:6])
    instructions = [struct.unpack("=HBBI", data[start : start + 8]) for start in range(0, len(data), 8)]
    index, value = 0, 0
    while True:
        operation, if_true, if_false, constant = instructions[index]
        index += 1
        if operation == 0x20:
            value = struct.unpack_from("=I", packet, constant)[0]
        elif operation == 0x54:
            value &= constant
        elif operation == 0x06:
            return constant
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[operation]
            index += if_true if holds else if_false
