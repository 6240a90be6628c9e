"""Bind the life of the fork server to its parent's. Only the fork server imports this module, and it does so first.

The standard library ends the fork server when its pipe closes, but its children hold that pipe as well.
"""

import os
import signal
import sys

from infra.embedded import create_parent_bond

create_parent_bond(signal.SIGKILL)()
if os.getppid() == 1:
    # Without a word: a command that was refused at once has printed why.
    sys.exit(1)
