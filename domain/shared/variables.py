"""Check the names and values of environment variables that agents get.

Nothing here protects the fence: code inside may set what it likes. A name is reserved where the sandbox sets it
itself, or where a value would break the run or have no effect.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from domain.shared.errors import FieldError, InvalidFields

MAX_NAME_CHARACTERS: Final = 256
MAX_VARIABLES: Final = 256
MAX_VALUE_BYTES: Final = 32 * 1024
# All names and values of one set of variables: every execution keeps a copy of its agent's.
MAX_TOTAL_BYTES: Final = 64 * 1024
# What the sandbox sets for an agent whose manifest names `models`, and for no other.
GATEWAY_VARIABLES: Final = frozenset(
    {"OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"}
)
_NAME_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SANDBOX_VARIABLES: Final = frozenset({"PATH", "HOME", "LANG", "TMPDIR"})
_PROXY_VARIABLES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY"})
# These decide where a Python that the agent starts finds its modules. PYTHONUNBUFFERED and the like are harmless.
_INTERPRETER_VARIABLES: Final = frozenset(
    {
        *("PYTHONHOME", "PYTHONPATH", "PYTHONPLATLIBDIR", "PYTHONEXECUTABLE", "PYTHONUSERBASE"),
        *("PYTHONNOUSERSITE", "PYTHONSAFEPATH", "PYTHONCASEOK", "PYTHONPYCACHEPREFIX"),
    }
)
_PROMPT_VARIABLES: Final = frozenset({"PYTHONSTARTUP", "PYTHONINSPECT"})


def find_name_problem(name: str) -> str | None:
    """Return why a variable may not have this name, as the end of a sentence; None if it may."""
    if len(name) > MAX_NAME_CHARACTERS:
        return f"must be a name of at most {MAX_NAME_CHARACTERS} characters."
    if not _NAME_PATTERN.fullmatch(name):
        return "must be a name of the letters A to Z, digits and _, without a digit at its beginning."
    if name in _SANDBOX_VARIABLES:
        return "is reserved: the sandbox sets it."
    if name.startswith("PADDOCK_"):
        return "is reserved: Paddock sets the variables that begin with PADDOCK_."
    if name.upper() in _PROXY_VARIABLES:
        return "is reserved: the sandbox sets the proxy for the hosts under `egress`."
    if name.startswith("LD_"):
        return "is reserved: it would change the libraries of the programs that the agent starts."
    if name in _INTERPRETER_VARIABLES:
        return "is reserved: it would change where Python finds modules. Those of the archive are found without it."
    if name in _PROMPT_VARIABLES:
        return "is reserved: it is for a Python at whose prompt a person types, and agents have none."
    return None


def find_value_problem(value: str) -> str | None:
    """Return why a variable may not have this value, as the end of a sentence; None if it may."""
    if "\0" in value:
        return "must not contain the character U+0000."
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "must not contain half of a surrogate pair."
    return None if size <= MAX_VALUE_BYTES else f"has {size} bytes; at most {MAX_VALUE_BYTES} are allowed."


def list_variable_problems(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the problem of each bad variable, and `("", problem)` for all of them together."""
    if len(variables) > MAX_VARIABLES:
        yield "", f"has {len(variables)} variables; at most {MAX_VARIABLES} are allowed."
        return
    has_problems = False
    for name, value in variables.items():
        if name:
            problem = find_name_problem(name) or find_value_problem(value)
        else:
            problem = "has a variable whose name is empty."
        if problem is not None:
            has_problems = True
            yield name, problem
    if has_problems:
        return
    size = sum(len(name) + len(value.encode()) for name, value in variables.items())
    if size > MAX_TOTAL_BYTES:
        yield "", f"has {size} bytes in all; at most {MAX_TOTAL_BYTES} are allowed."


def check_variables(variables: Mapping[str, str], field: str) -> None:
    """Check variables that a request sets. Errors: `invalid_field` for each, as `env.NAME`."""
    errors = [
        FieldError(field=f"{field}.{name[:100]}" if name else field, message=problem)
        for name, problem in list_variable_problems(variables)
    ]
    if errors:
        raise InvalidFields(errors)


def find_gateway_names(names: Iterable[str]) -> list[str]:
    """Return the names that the sandbox sets itself for an agent with a gateway to models."""
    return sorted(GATEWAY_VARIABLES.intersection(names))
