"""Names, docstrings and words follow `docs/naming.md`, but for the exceptions that are listed with their reasons."""

from collections import Counter

import pytest

from tests.language.exceptions import EXCEPTIONS, TEST_EXCEPTIONS
from tests.language.rules import (
    COPIED_LINES,
    Violation,
    check_copies,
    check_docstrings,
    check_names,
    check_product,
    check_test_functions,
    check_tests,
    check_words,
    count_words,
    is_verb,
    list_product,
)

MAX_EXCEPTIONS = 40
MAX_TEST_EXCEPTIONS = 10
MAX_ONE_WORD_SHARE = 0.25
# The number of violations that are not corrected yet, by rule. It may only fall; a rule that is not here holds everywhere.
REMAINING: dict[str, int] = {}


@pytest.fixture(scope="module")
def violations() -> list[Violation]:
    return check_product()


@pytest.fixture(scope="module")
def violations_in_tests() -> list[Violation]:
    return check_tests()


@pytest.mark.parametrize(
    "rule", ["function", "class", "constant", "variable", "docstring", "word", "door", "file", "length", "copy"]
)
def test_product_keeps_the_rule(violations: list[Violation], rule: str) -> None:
    broken = [violation for violation in violations if violation.rule == rule and violation.key not in EXCEPTIONS]
    listed = "\n".join(f"{violation.path}:{violation.line}: {violation.name}: {violation.hint}" for violation in broken)
    assert len(broken) <= REMAINING.get(rule, 0), f"`make names` lists {len(broken)}:\n{listed[:4000]}"


@pytest.mark.parametrize("rule", ["function", "class", "variable", "word", "test name"])
def test_tests_keep_the_rule(violations_in_tests: list[Violation], rule: str) -> None:
    broken = [
        violation
        for violation in violations_in_tests
        if violation.rule == rule and not violation.key.startswith(tuple(TEST_EXCEPTIONS))
    ]
    listed = "\n".join(f"{violation.path}:{violation.line}: {violation.name}: {violation.hint}" for violation in broken)
    assert broken == [], f"`make names` lists {len(broken)}:\n{listed[:4000]}"


def test_exceptions_of_tests_are_few_and_needed(violations_in_tests: list[Violation]) -> None:
    assert len(TEST_EXCEPTIONS) <= MAX_TEST_EXCEPTIONS
    for prefix, reason in TEST_EXCEPTIONS.items():
        assert any(violation.key.startswith(prefix) for violation in violations_in_tests), prefix
        assert len(reason) > 10


def test_rules_find_bad_names_in_tests() -> None:
    (tree,) = parse("""
def told(): ...
def rows_of(): ...
def build_rows():
    def rows(): ...
    def sent(): ...
@pytest.fixture
def database(): ...
def pytest_configure(): ...
def test_whoever_asks_is_told(): ...
def test_expired_lease_is_reclaimed(): ...
""").values()
    assert [(violation.rule, violation.name) for violation in check_test_functions("tests/test_x.py", tree)] == [
        ("function", "told"),
        ("function", "rows_of"),
        ("function", "build_rows.sent"),
        ("test name", "test_whoever_asks_is_told"),
        ("test name", "test_whoever_asks_is_told"),
    ]


def test_number_of_remaining_violations_is_exact(violations: list[Violation]) -> None:
    counts = Counter(violation.rule for violation in violations if violation.key not in EXCEPTIONS)
    assert {rule: counts[rule] for rule in REMAINING} == REMAINING


def test_exceptions_are_few_and_needed(violations: list[Violation]) -> None:
    assert len(EXCEPTIONS) <= MAX_EXCEPTIONS
    assert set(EXCEPTIONS) <= {violation.key for violation in violations}
    assert all(len(reason) > 10 for reason in EXCEPTIONS.values())


def test_few_functions_have_one_word_names() -> None:
    shares = count_words().values()
    functions, one_word = (sum(pair[index] for pair in shares) for index in (0, 1))
    assert one_word <= functions * MAX_ONE_WORD_SHARE


def test_no_function_is_a_bare_participle() -> None:
    names = [
        (path, violation.name)
        for path, tree in list_product().items()
        for violation in check_names({path: tree})
        if violation.rule == "function" and violation.hint == "a bare participle"
    ]
    assert names == []


def parse(source: str):
    import ast

    return {"domain/example.py": ast.parse(source)}


def test_rules_find_bad_names() -> None:
    bad = '''
BATCH = 1
class Outcome:
    """What came of it."""
    def told(self): ...
    @property
    def gone(self): ...
def checked_name(one): ...
def of(): ...
for found in (): ...
'''
    seen = {(violation.rule, violation.name) for violation in check_names(parse(bad))}
    assert seen == {
        ("constant", "BATCH"),
        ("function", "Outcome.told"),
        ("function", "Outcome.gone"),
        ("function", "checked_name"),
        ("function", "of"),
        ("variable", "one"),
        ("variable", "found"),
    }
    assert [violation.name for violation in check_docstrings(parse(bad))] == ["Outcome"]
    good = '''
MAX_EVENT_BATCH = 1
class PlanOutcome:
    """Describe how a plan ended."""
    def list_events(self): ...
    @property
    def tenant_id(self): ...
    @property
    def is_gone(self): ...
def row_from_struct(struct): ...
def to_json(value): ...
def on_answer(part): ...
def __repr__(self): ...
'''
    assert list(check_names(parse(good))) == []
    assert list(check_docstrings(parse(good))) == []


def test_class_name_must_be_unique() -> None:
    import ast

    trees = {path: ast.parse("class Step: ...") for path in ("domain/a.py", "workers/b.py")}
    assert {violation.path for violation in check_names(trees)} == set(trees)


@pytest.mark.parametrize(("word", "is_one"), [("Return", True), ("Claims", True), ("What", False), ("Costs", False)])
def test_docstring_opens_with_a_verb(word: str, is_one: bool) -> None:
    assert is_verb(word) is is_one


def test_words_are_found_in_docs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text("Storage is away.\nIt is unavailable.\nWhoever asks is told.\n")
    monkeypatch.setattr("tests.language.rules.ROOT", tmp_path)
    assert [(violation.line, violation.name) for violation in check_words(["page.md"])] == [
        (1, "is away"),
        (3, "whoever"),
        (3, "is told"),
    ]


def test_a_second_copy_is_seen_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = [f"line_{number} = {number}" for number in range(COPIED_LINES + 2)]
    spread = [*run[:3], "", "# why", "import os", "[", "]", "line_3  =  3", *run[4:]]
    files = {
        "first.py": ["other = 1", *run, "more = 1"],
        "second.py": ["if other:", *(f"    {line}" for line in spread), "last = 1"],
        "third.py": [*run[: COPIED_LINES - 1], "line_9 = 10", *run[COPIED_LINES:]],
    }
    for path, lines in files.items():
        (tmp_path / path).write_text("\n".join(lines))
    monkeypatch.setattr("tests.language.rules.ROOT", tmp_path)
    assert [(copy.path, copy.line, copy.hint) for copy in check_copies(list(files))] == [
        ("second.py", 2, f"the same {COPIED_LINES} lines: first.py:2")
    ]


def test_imports_are_no_copies(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    imports = "from package import (\n" + "".join(f"    name_{number},\n" for number in range(2 * COPIED_LINES)) + ")\n"
    for name in ("first.py", "second.py"):
        (tmp_path / name).write_text(f"{imports}{name.removesuffix('.py')} = 1\n")
    monkeypatch.setattr("tests.language.rules.ROOT", tmp_path)
    assert list(check_copies(["first.py", "second.py"])) == []
