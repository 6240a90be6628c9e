"""Imported first by the mother of our processes, and by nothing else: it binds her life to her parent's.

The standard library ends her when her pipe closes, but her children hold that pipe as well.
"""

import os
import signal
import sys

from infra.embedded.children import create_parent_bond

create_parent_bond(signal.SIGKILL)()
if os.getppid() == 1:
    sys.exit("paddock: the parent is gone already")
