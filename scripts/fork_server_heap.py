"""Freeze the heap of the fork server. It imports this module last.

A garbage collection writes to every object that it looks at, and would give each child its own copy of every page.
Frozen objects are left alone by the children's collectors.
"""

import gc

gc.collect()
gc.freeze()
