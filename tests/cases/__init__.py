"""Cases from public bug reports of this field: their inputs in `inputs/`, one folder a case, and what is right in the tests.

A test names the folder that it runs (`case_folder("36-archives-made-otherwise")`); `test_every_case_is_run.py` holds the two together.
"""
