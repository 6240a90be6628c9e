"""Find what is wrong with a value that JSON cannot hold. Loaded by `main` once there is one.

`subject` is the value's name and what to do with a better one: `("the result", "Return")`.
"""

import json

MAX_PATH_CHARS = 300
RESULT_SUBJECT = ("the result", "Return")


def find_duplicate_key(result, subject=RESULT_SUBJECT):
    """Return where two keys of one dict are the same in JSON (`1` and `"1"`), or None."""
    pending = [("", result)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, dict):
            if any(type(key) is not str for key in value):
                names = {}
                for key in value:
                    name = _encode_key(key)
                    if name in names:
                        where = _quote_path(place, subject)
                        return f"{where} has the keys {names[name]!r} and {key!r}, which are one key in JSON."
                    names[name] = key
            inner = value.items()
        else:
            inner = enumerate(value) if isinstance(value, (list, tuple)) else ()
        pending += [(_join_path(place, key), item) for key, item in inner if isinstance(item, (dict, list, tuple))]
    return None


def find_problem(result, subject=RESULT_SUBJECT):
    """Return the problem with the first value that JSON cannot hold; None if the search fails."""
    try:
        return find_bad_value(result, subject)
    except Exception:
        return None  # a container class of the agent's own that cannot be searched


def find_bad_value(result, subject=RESULT_SUBJECT):
    """Return the problem with the first value or key that JSON cannot hold; None if JSON can hold all."""
    # Depth first, with the containers around each place, to detect a cycle.
    pending = [("", result, ())]
    while pending:
        place, value, around = pending.pop()
        if isinstance(value, (dict, list, tuple)):
            if id(value) in around:
                return f"{_quote_path(place, subject)} holds itself."
            if len(around) > 500:
                return f"{_quote_path(place, subject)} nests too deep."
            if isinstance(value, dict):
                for key in value:
                    if not (key is None or isinstance(key, (str, int, float))):
                        key_text = f"{_shorten_text(repr(key))}, a {_get_type_name(key)}"
                        return f"{_quote_path(place, subject)} has the key {key_text}. Use text for keys."
                    problem = _find_scalar_problem(key, subject)
                    if problem is not None:
                        return f"a key of {_quote_path(place, subject)} {problem}"
                inner = list(value.items())
            else:
                inner = list(enumerate(value))
            inside = (*around, id(value))
            pending += [(_join_path(place, key), item, inside) for key, item in reversed(inner)]
            continue
        problem = _find_scalar_problem(value, subject)
        if problem is not None:
            return f"{_quote_path(place, subject)} {problem}"
    return None


def _find_scalar_problem(value, subject):
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"holds broken text: half of a surrogate pair at character {error.start}."
        return None
    if isinstance(value, int):
        try:
            int.__repr__(value)
        except ValueError:
            return "is a number of too many digits."
        return None
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return f"is {float.__repr__(value)}, which JSON does not have. {subject[1]} None or text in its place."
        return None
    return f"is a {_get_type_name(value)}. {subject[1]} {_suggest_replacement(value)}."


def _suggest_replacement(value):
    kind = type(value)
    if hasattr(kind, "isoformat"):
        return "its .isoformat()"
    for method in ("model_dump", "tolist", "to_dict"):
        if hasattr(kind, method):
            return f"its .{method}()"
    if hasattr(kind, "__dataclass_fields__"):
        return "dataclasses.asdict() of it"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "text, for example its base64"
    names = {base.__name__ for base in kind.__mro__}
    if "Enum" in names:
        return "its .value"
    if names & {"Decimal", "UUID", "PurePath", "Fraction"}:
        return "its str()"
    if hasattr(kind, "__iter__"):
        return "its list()"
    return "text, a number, a list or a dict in its place"


def _get_type_name(value):
    module, name = type(value).__module__, type(value).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _encode_key(key):
    return str.__str__(key) if isinstance(key, str) else json.dumps(key)


def _join_path(place, key):
    if type(key) is int:
        return f"{place}[{key}]"
    if isinstance(key, str) and key.isidentifier():
        return f"{place}.{_shorten_text(key)}" if place else _shorten_text(key)
    return f"{place}[{_shorten_text(repr(key))}]"


def _quote_path(place, subject):
    if not place:
        return subject[0]
    if len(place) <= MAX_PATH_CHARS:
        return f"`{place}`"
    return f"`{place[: MAX_PATH_CHARS // 2]}…{place[-MAX_PATH_CHARS // 2 :]}`"


def _shorten_text(text):
    return text if len(text) <= 60 else text[:59] + "…"
