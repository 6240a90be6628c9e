"""Imported last by the mother of our processes: what she has loaded is left alone by her children's collectors.

A collection writes to every object it looks at, and so would give each child its own copy of every page.
"""

import gc

gc.collect()
gc.freeze()
