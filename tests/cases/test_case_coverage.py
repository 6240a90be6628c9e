"""Test that each folder of inputs is named by a test of this folder."""

from pathlib import Path

import pytest

from tests.support.case_inputs import INPUTS_FOLDER

HERE = Path(__file__).parent
# Reports that consist of requests and have no files.
CASES_WITHOUT_FILES = ("28-cron-days-that-end-on-sunday", "29-times-in-queries", "30-forwarded-for-with-a-port")
TEST_SOURCES = {file: file.read_text() for file in HERE.glob("test_*.py") if file != Path(__file__)}


@pytest.mark.parametrize(
    "name", sorted([*(folder.name for folder in INPUTS_FOLDER.iterdir() if folder.is_dir()), *CASES_WITHOUT_FILES])
)
def test_case_is_named_by_a_test(name: str) -> None:
    assert [file.name for file, text in TEST_SOURCES.items() if name in text], f"no test of tests/cases names {name}"


def test_case_numbers_are_complete() -> None:
    numbers = {int(folder.name[:2]) for folder in INPUTS_FOLDER.iterdir() if folder.is_dir()}
    # Number 18 was reported and turned out to be correct.
    assert numbers | {int(name[:2]) for name in CASES_WITHOUT_FILES} == set(range(1, 40)) - {18}
