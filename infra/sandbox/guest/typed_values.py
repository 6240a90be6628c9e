"""Turn a payload into the type that an entrypoint's hint names, and a result of such types into JSON.

Loaded by `main` for entrypoints with hints. A payload of a plain dict stays as it is.
"""

import typing

MAX_SHOWN_CHARS = 100


class InputMismatch(Exception):
    """Report a payload that does not fit its hint. `kind` is the error type of a run that ends with it."""

    kind = "input_invalid"


def find_converter(function, signature):
    """Return what converts the payload for a function, None if it takes it as it is. `signature` is that part."""
    payload = signature.find_hints(function)[0] if signature.is_plain(function) else None
    if payload is None or signature.is_open(payload):
        return None
    return lambda value: _Converter(signature).convert(value, payload, "payload")


def find_result_converter(function, signature):
    """Return what converts the result of a function, None if its hint asks for none."""
    result = signature.find_hints(function)[1]
    return None if result is None or signature.is_open(result) else lambda value: to_json(value, signature)


class _Converter:
    """Convert JSON values. Errors: `InputMismatch`, naming the place."""

    def __init__(self, signature):
        self._signature = signature

    def convert(self, value, hint, place):
        signature = self._signature
        if hint is typing.Any or hint is object or isinstance(hint, typing.TypeVar):
            return value
        if not isinstance(hint, type):
            for attribute in ("__supertype__", "__value__"):
                if hasattr(hint, attribute):
                    return self.convert(value, getattr(hint, attribute), place)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hasattr(hint, "__metadata__"):
            return self.convert(value, args[0], place)
        if origin is None:
            return self._convert_class(value, hint, place)
        if origin is typing.Literal:
            return next((choice for choice in args if getattr(choice, "value", choice) == value), value)
        name = getattr(origin, "__name__", str(origin).rpartition(".")[2])
        if name in ("Union", "UnionType"):
            return self._convert_union(value, args, place)
        if str(origin).rpartition(".")[2] in ("Required", "NotRequired", "ReadOnly", "Final"):
            return self.convert(value, args[0], place)
        if signature.has_fields(origin):
            return self._convert_class(value, origin, place)
        return self._convert_container(value, origin, args, place)

    def _convert_union(self, value, members, place):
        if value is None and type(None) in members:
            return None
        problem = None
        for member in members:
            if member is type(value) and not isinstance(value, (str, dict, list)):
                return value
        for member in members:
            if member is type(None):
                continue
            try:
                return self.convert(value, member, place)
            except InputMismatch as mismatch:
                problem = problem or mismatch
        raise problem or InputMismatch(f"{place}: {_show(value)} fits none of the hint's types.")

    def _convert_container(self, value, origin, args, place):
        if isinstance(value, list) and args:
            if issubclass(origin, tuple) and args[-1] is not Ellipsis:
                if len(value) != len(args):
                    raise InputMismatch(f"{place}: must have {len(args)} items; it has {len(value)}.")
                return tuple(self.convert(item, args[at], f"{place}[{at}]") for at, item in enumerate(value))
            items = [self.convert(item, args[0], f"{place}[{at}]") for at, item in enumerate(value)]
            return origin(items) if origin in (tuple, set, frozenset) else items
        if isinstance(value, dict) and len(args) > 1:
            return {name: self.convert(item, args[1], f"{place}.{name}") for name, item in value.items()}
        if isinstance(value, (list, dict)) and not args:
            return value
        raise InputMismatch(f"{place}: must be {'an object' if issubclass(origin, dict) else 'a list'}.")

    def _convert_class(self, value, hint, place):
        signature = self._signature
        if signature.is_pydantic(hint):
            return _run_foreign(lambda: hint.model_validate(value), place)
        if signature.is_msgspec(hint):
            import msgspec

            return _run_foreign(lambda: msgspec.convert(value, hint), place)
        if signature.has_fields(hint):
            return self._convert_fields(value, hint, place)
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if hint is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if hint in (str, int, float, bool, dict, list, None, type(None)):
            kinds = type(None) if hint is None else hint
            if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
                raise InputMismatch(f"{place}: must be {signature.show_type(hint)}, not {_show(value)}.")
            return value
        try:
            return _parse_scalar(value, hint)
        except InputMismatch:
            raise
        except Exception as error:
            raise InputMismatch(f"{place}: {_show(value)} is no {signature.show_type(hint)}: {error}") from None

    def _convert_fields(self, value, hint, place):
        signature = self._signature
        if not isinstance(value, dict):
            raise InputMismatch(f"{place}: must be an object, not {_show(value)}.")
        values = {}
        for name, kind, is_required, _ in signature.list_fields(hint):
            if name in value:
                values[name] = self.convert(value[name], kind, f"{place}.{name}")
            elif is_required:
                raise InputMismatch(f"{place}.{name}: is required.")
        return {**value, **values} if signature.is_typed_dict(hint) else hint(**values)


def _parse_scalar(value, hint):
    """Return text or a number as a date, an enum, a set and the like."""
    if issubclass(hint, (tuple, set, frozenset)) and isinstance(value, list):
        return hint(value)
    if hasattr(hint, "fromisoformat"):
        return hint.fromisoformat(value)
    if hint.__name__ == "timedelta":
        return _parse_duration(value)
    if hint.__name__ == "Decimal":
        return hint(str(value))
    return hint(value)


def _parse_duration(text):
    """Return a duration as ISO 8601 writes it: `P1DT2H`."""
    import datetime
    import re

    pattern = r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?"
    match = re.fullmatch(pattern, text)
    if match is None or text.endswith(("P", "T")):
        raise ValueError("write it like P1DT2H")
    weeks, days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return datetime.timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)


def _run_foreign(convert, place):
    try:
        return convert()
    except Exception as error:
        # pydantic names the places of its errors, msgspec writes them into its sentence.
        listed = error.errors() if callable(getattr(error, "errors", None)) else None
        if not listed:
            raise InputMismatch(f"{place}: {error}") from None
        parts = []
        for item in listed[:5]:
            inner = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item.get("loc", ()))
            parts.append(f"{place}{inner}: {item.get('msg', '')}")
        raise InputMismatch("; ".join(parts)) from None


def to_json(value, signature):
    """Return a value with its dataclasses, models, enums, dates and the like as JSON; what is none of these stays."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    kind = type(value)
    if isinstance(value, dict):
        return {name: to_json(item, signature) for name, item in value.items()}
    if signature.is_named_tuple(kind):
        return {name: to_json(item, signature) for name, item in zip(kind._fields, value, strict=True)}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item, signature) for item in value]
    if signature.is_pydantic(kind):
        return value.model_dump(mode="json", by_alias=True)
    if signature.is_msgspec(kind):
        import msgspec

        return msgspec.to_builtins(value)
    if hasattr(kind, "__dataclass_fields__"):
        return {
            name: to_json(getattr(value, name), signature) for name in kind.__dataclass_fields__ if hasattr(value, name)
        }
    bases = {base.__name__ for base in kind.__mro__}
    if "Enum" in bases:
        return to_json(value.value, signature)
    if kind.__name__ == "timedelta":
        return f"PT{value.total_seconds():g}S"
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value) if bases & {"Decimal", "UUID", "PurePath"} else value


def _show(value):
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
