"""Run every benchmark: `python -m scripts.bench`."""

import asyncio
import os

from scripts.bench.suite import main

os.environ.setdefault("PADDOCK_LOG_LEVEL", "WARNING")
asyncio.run(main())
