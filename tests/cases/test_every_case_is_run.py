"""No reported case is forgotten: each folder of inputs is named by a test beside it."""

from pathlib import Path

import pytest

from tests.support.case_inputs import INPUTS_FOLDER

HERE = Path(__file__).parent
# Reports that are a list of requests, and have no files.
WITHOUT_FILES = ("28-cron-days-that-end-on-sunday", "29-times-in-queries", "30-forwarded-for-with-a-port")
TESTS = {file: file.read_text() for file in HERE.glob("test_*.py") if file != Path(__file__)}


@pytest.mark.parametrize(
    "name", sorted([*(folder.name for folder in INPUTS_FOLDER.iterdir() if folder.is_dir()), *WITHOUT_FILES])
)
def test_a_test_runs_the_case(name: str) -> None:
    assert [file.name for file, text in TESTS.items() if name in text], f"no test of tests/cases names {name}"


def test_every_number_is_there() -> None:
    numbers = {int(folder.name[:2]) for folder in INPUTS_FOLDER.iterdir() if folder.is_dir()}
    # Number 18 was reported, tried and found right.
    assert numbers | {int(name[:2]) for name in WITHOUT_FILES} == set(range(1, 39)) - {18}
