"""Limit what one check of a value against a JSON Schema may use: neither the value nor the schema is trusted.

A schema can keep a process busy for hours, or fill its memory: expressions that backtrack or repeat a thousand times,
references that double at each step, alternatives that all report errors. So a check is bounded in its processor time,
in the number and size of its expressions and in the errors it makes. Expressions are matched by RE2, which does not
backtrack, bounds its memory and frees the interpreter.
"""

import re
import time
from typing import Any, Final

from jsonschema.exceptions import ValidationError

# Seconds of processor time, so that other work makes no check fail.
MAX_CHECK_SECONDS: Final = 1.0
MAX_PATTERNS: Final = 64
# Of one compiled expression; those of a check are forgotten when it ends.
MAX_PATTERN_BYTES: Final = 512 * 1024
# Instructions of an expression times characters of a text: the most that one match may have to look at.
MAX_MATCH_STEPS: Final = 16_000_000
MAX_SCHEMA_ERRORS: Final = 10_000
MAX_ERROR_CHARACTERS: Final = 32 * 1024 * 1024

# ECMAScript writes characters like this, and RE2 does not.
_UNICODE_ESCAPE: Final = re.compile(r"\\u([0-9A-Fa-f]{4})")


class CheckTooLong(Exception):
    """Report a check that would use more than it may."""


class UndecidedMatch(Exception):
    """Report an expression that cannot be matched, where a match would decide."""


def compile_pattern(pattern: str) -> Any:
    """Compile an expression, None if RE2 cannot."""
    # Imported where it is needed: few schemas have expressions.
    import re2

    options = re2.Options()
    options.max_mem, options.log_errors, options.never_capture = MAX_PATTERN_BYTES, False, True
    try:
        return re2.compile(_UNICODE_ESCAPE.sub(r"\\x{\1}", pattern), options)
    except (re2.error, UnicodeError):
        return None


def forget_compiled_patterns() -> None:
    """Free the memory of expressions, which the library would keep for later."""
    import re2

    re2.purge()


class CheckLimits:
    """Limit what one check may use. `negation_depth` counts the keywords around that turn a match into a refusal.

    A lenient check (not `is_strict`) leaves what it cannot decide to the receiver of the value.
    """

    def __init__(self, is_strict: bool) -> None:
        self._until = time.thread_time() + MAX_CHECK_SECONDS
        self._errors, self._characters = MAX_SCHEMA_ERRORS, MAX_ERROR_CHARACTERS
        self._patterns: dict[str, Any] = {}
        self.is_strict = is_strict
        self.negation_depth = 0

    def check_time(self) -> None:
        """Continue if there is time. Errors: `CheckTooLong`."""
        if time.thread_time() > self._until:
            raise CheckTooLong

    def count_error(self, error: ValidationError) -> None:
        """Count an error. Errors: `CheckTooLong`."""
        self._errors -= 1
        self._characters -= len(error.message)
        if self._errors < 0 or self._characters < 0:
            raise CheckTooLong

    def match_pattern(self, pattern: Any, text: str) -> bool | None:
        """Return whether an expression matches anywhere in a text, None if a lenient check cannot decide it.

        Errors: `CheckTooLong`, `UndecidedMatch`.
        """
        self.check_time()
        compiled = self._compile_pattern(pattern)
        if compiled is None or compiled.programsize * len(text) > MAX_MATCH_STEPS:
            is_match = None
        elif compiled.search(text) is not None:
            return True
        elif self.is_strict:
            # As in ECMAScript, whose `\w` means ASCII.
            return False
        else:
            # `\w` and its kind mean ASCII in some languages, and all of Unicode in others.
            is_match = False if text.isascii() or "\\" not in pattern else None
        if is_match is None and (self.negation_depth or self.is_strict):
            raise UndecidedMatch
        return is_match

    def _compile_pattern(self, pattern: Any) -> Any:
        if pattern not in self._patterns:
            if len(self._patterns) >= MAX_PATTERNS:
                return None
            self._patterns[pattern] = compile_pattern(pattern)
        return self._patterns[pattern]

    def forget_patterns(self) -> None:
        """Free the memory of the expressions that were matched."""
        if self._patterns:
            forget_compiled_patterns()
