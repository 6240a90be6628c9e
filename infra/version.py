"""Name the version of this installation."""

from importlib.metadata import version
from typing import Final

PADDOCK_VERSION: Final = version("paddock")
