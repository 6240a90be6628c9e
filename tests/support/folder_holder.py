"""Start the servers on a folder as `paddock up` does, print their addresses, and stay until killed. Argument: the folder."""

import asyncio
import sys
from pathlib import Path

from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.seaweedfs import EmbeddedSeaweed
from infra.embedded.valkey import EmbeddedValkey

TEST_SECRET = "0" * 64


def create_servers(folder: Path) -> tuple[EmbeddedPostgres, EmbeddedValkey, EmbeddedSeaweed]:
    return (
        EmbeddedPostgres(folder / "postgres", TEST_SECRET, TEST_SECRET),
        EmbeddedValkey(folder / "valkey", TEST_SECRET),
        EmbeddedSeaweed(folder / "seaweedfs", TEST_SECRET, TEST_SECRET),
    )


async def main(folder: Path) -> None:
    servers = create_servers(folder)
    await asyncio.gather(*(server.start() for server in servers))
    postgres, valkey, seaweed = servers
    print(postgres.owner_url, valkey.url, seaweed.endpoint_url, flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
