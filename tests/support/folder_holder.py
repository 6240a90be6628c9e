"""Starts the parts on a folder as `paddock up` does, says so, and stays until it is killed. Argument: the folder."""

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
    made = create_servers(folder)
    await asyncio.gather(*(part.start() for part in made))
    postgres, valkey, seaweed = made
    print(postgres.owner_url, valkey.url, seaweed.endpoint_url, flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
