"""Print what breaks the rules, below the given paths, and the share of one-word names by package."""

import sys
from collections import Counter

from tests.language.exceptions import EXCEPTIONS, TEST_EXCEPTIONS
from tests.language.rules import check_product, check_tests, count_words


def main() -> None:
    """Print the violations below the paths of the command line, or all; then the shares."""
    below = tuple(sys.argv[1:]) or ("",)
    broken = [
        violation
        for violation in check_product()
        if violation.path.startswith(below) and violation.key not in EXCEPTIONS
    ]
    broken += [
        violation
        for violation in check_tests()
        if violation.path.startswith(below) and not violation.key.startswith(tuple(TEST_EXCEPTIONS))
    ]
    for violation in sorted(broken, key=lambda item: (item.path, item.line)):
        print(f"{violation.path}:{violation.line}: {violation.rule} {violation.name}: {violation.hint}")
    shares = count_words()
    for package, (functions, one_word) in shares.items():
        if package.startswith(below):
            print(f"{package:<40}{functions:>6} functions{one_word:>6} of one word{100 * one_word // functions:>5} %")
    functions, one_word = (sum(pair[index] for pair in shares.values()) for index in (0, 1))
    print(f"{'all':<40}{functions:>6} functions{one_word:>6} of one word{100 * one_word / functions:>7.1f} %")
    print(
        f"{len(EXCEPTIONS) + len(TEST_EXCEPTIONS)} exceptions; broken: {dict(Counter(violation.rule for violation in broken))}"
    )


main()
