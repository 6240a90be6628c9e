"""Test cases from public bug reports of this field: one folder of `inputs/` for each case, and the expected results in the tests.

A test names the folder that it runs (`case_folder("36-archives-made-otherwise")`); `test_case_coverage.py` checks that every case has a test.
"""
