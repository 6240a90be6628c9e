"""Read the type hints of an entrypoint, and describe them as JSON Schemas. Loaded by `main` for entrypoints with hints.

What cannot be described is reported and has no schema: the host checks every schema like one that a person wrote.
"""

import sys
import typing

MAX_TYPES = 500
MAX_DESCRIPTION_CHARS = 1000
# Hints that say no more than that a payload is an object, or that a result is JSON.
OPEN_HINTS = ("dict", "Any", "object", "Mapping", "typing.Any", "typing.Mapping", "typing.Dict", "Dict", "None")
_STREAM_NAMES = {"Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator"}
_TEXT_FORMATS = {"datetime": "date-time", "date": "date", "time": "time", "timedelta": "duration", "UUID": "uuid"}
_BOUND_KEYWORDS = (
    *(("ge", "minimum"), ("le", "maximum"), ("gt", "exclusiveMinimum"), ("lt", "exclusiveMaximum")),
    *(("multiple_of", "multipleOf"), ("pattern", "pattern")),
)


class UnreadableHint(Exception):
    """Report a type that has no JSON Schema."""


def find_hints(function):
    """Return the hints of an entrypoint's payload and result, as types. Each is None without a hint.

    The third value says why a hint cannot be read.
    """
    plain = _unwrap(function)
    try:
        if not getattr(plain, "__annotations__", None):
            return None, None, []
    except NameError:
        pass  # of a name that exists for type checkers alone; the other hint may be read
    hints, problems = [], []
    for name in (_find_payload_name(function), "return"):
        try:
            hints.append(_resolve_hint(plain, name))
        except Exception as error:
            hints.append(None)
            problems.append(f"the hint of {name} cannot be read: {type(error).__name__}: {error}")
    return hints[0], hints[1], problems


def is_plain(function):
    """Return whether what calls the entrypoint is the function that has the hints, and no decorator around it."""
    return not hasattr(function, "__wrapped__") and not hasattr(function, "func")


def describe_signature(function):
    """Return the schemas of an entrypoint's hints, and what is wrong with those that have none."""
    payload, result, problems = find_hints(function)
    schemas = {"input_schema": None, "output_schema": None}
    for key, hint, is_output in (("input_schema", payload, False), ("output_schema", result, True)):
        if hint is None or is_open(hint) or (is_output and _is_stream(hint)):
            continue
        try:
            schema = SchemaBuilder(is_output).build_document(hint)
        except Exception as error:
            problems.append(f"the hint {show_type(hint)} has no JSON Schema: {error}")
            continue
        if not is_output and schema.get("type", "object") != "object":
            problems.append(f"the payload is an object, and no {show_type(hint)}")
            continue
        schemas[key] = schema
    return {**schemas, "problems": problems}


def is_open(hint):
    """Return whether a hint says nothing that a schema could hold."""
    if hint in (None, type(None), typing.Any, object, dict, list) or isinstance(hint, typing.TypeVar):
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    is_mapping = isinstance(origin or hint, type) and getattr(origin or hint, "__name__", "") in ("dict", "Mapping")
    return is_mapping and (not args or args[1] in (typing.Any, object))


def _is_stream(hint):
    origin = typing.get_origin(hint) or hint
    return getattr(origin, "__name__", "") in _STREAM_NAMES


def show_type(hint):
    """Return how a hint is written, shortened."""
    name = getattr(hint, "__qualname__", None) if isinstance(hint, type) and not typing.get_args(hint) else None
    return (name or repr(hint).replace("typing.", ""))[:100]


def _unwrap(function):
    """Return the plain function behind decorators, partials, methods and callable objects."""
    for _ in range(50):
        if hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif hasattr(function, "func") and hasattr(function, "keywords"):
            function = function.func
        else:
            break
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__code__") and not isinstance(function, type):
        function = type(function).__call__
    return function


def _find_payload_name(function):
    import inspect

    options = {}
    if sys.version_info >= (3, 14):
        import annotationlib

        options["annotation_format"] = annotationlib.Format.FORWARDREF
    for parameter in inspect.signature(function, **options).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return parameter.name
        break
    return ""


def _resolve_hint(function, name):
    hints = getattr(function, "__annotations__", None) or {}
    if name not in hints or hints[name] is None:
        return None
    holder = type("Hints", (), {})()
    holder.__annotations__ = {name: hints[name]}
    return typing.get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)[name]


class SchemaBuilder:
    """Build the schema of one hint. In an output, all fields that a class always writes are required."""

    def __init__(self, is_output):
        self._is_output = is_output
        self._definitions = {}
        self._names = {}  # by type
        self._uses = {}
        self._count = 0

    def build_document(self, hint):
        """Return the schema of a hint, with all that it refers to."""
        schema = self.describe(hint)
        name = schema.get("$ref", "").rpartition("/")[2] if set(schema) == {"$ref"} else None
        if name is not None and self._uses[name] == 1:
            # Readers of schemas, as of MCP's tools, look for an object at the top.
            schema = self._definitions.pop(name)
        elif name is not None:
            schema = {**self._definitions[name]}
        return {**schema, "$defs": self._definitions} if self._definitions else schema

    def describe(self, hint):
        """Return the schema of a hint. Errors: `UnreadableHint`."""
        self._count += 1
        if self._count > MAX_TYPES:
            raise UnreadableHint("it holds too many types")
        if hint is typing.Any or hint is object or isinstance(hint, typing.TypeVar):
            return {}
        if hint is None or hint is type(None):
            return {"type": "null"}
        for attribute in ("__supertype__", "__value__"):  # NewType, and `type X = …`
            if not isinstance(hint, type) and hasattr(hint, attribute):
                return self.describe(getattr(hint, attribute))
        origin = typing.get_origin(hint)
        if origin is None:
            return self._describe_class(hint)
        args = typing.get_args(hint)
        if hasattr(hint, "__metadata__"):
            return self._describe_annotated(args[0], hint.__metadata__)
        if origin is typing.Literal:
            return {"enum": [getattr(value, "value", value) for value in args]}
        if getattr(origin, "__name__", str(origin).rpartition(".")[2]) in ("Union", "UnionType"):
            return {"anyOf": [self.describe(member) for member in args]}
        if str(origin).rpartition(".")[2] in ("Required", "NotRequired", "ReadOnly", "Final", "ClassVar"):
            return self.describe(args[0])
        return self._describe_container(origin, args, hint)

    def _describe_container(self, origin, args, hint):
        name = getattr(origin, "__name__", "")
        if issubclass(origin, tuple) and args and args[-1] is not Ellipsis:
            items = [self.describe(item) for item in args]
            bounds = {"minItems": len(items), "maxItems": len(items)}
            return (
                {"type": "array", "prefixItems": items, **bounds} if args != ((),) else {"type": "array", "maxItems": 0}
            )
        if issubclass(origin, (list, tuple, set, frozenset)) or name in ("Sequence", "Collection", "Set", "Iterable"):
            unique = {"uniqueItems": True} if issubclass(origin, (set, frozenset)) or name == "Set" else {}
            return {"type": "array", **({"items": self.describe(args[0])} if args else {}), **unique}
        if issubclass(origin, dict) or name in ("Mapping", "MutableMapping"):
            values = self.describe(args[1]) if len(args) > 1 else {}
            return {"type": "object", **({"additionalProperties": values} if values else {})}
        if has_fields(origin):
            return self._describe_named(origin, hint)
        raise UnreadableHint(f"{show_type(hint)} is not known")

    def _describe_class(self, hint):
        if not isinstance(hint, type):
            raise UnreadableHint(f"{show_type(hint)} is not known")
        if has_fields(hint):
            return self._describe_named(hint, hint)
        if "Enum" in {base.__name__ for base in hint.__mro__} and hasattr(hint, "__members__"):
            return {"enum": [member.value for member in hint]}
        for kinds, name in (((bool,), "boolean"), ((int,), "integer"), ((float,), "number"), ((str,), "string")):
            if issubclass(hint, kinds):
                return {"type": name}
        for base in hint.__mro__:
            if base.__name__ in _TEXT_FORMATS and base.__module__ in ("datetime", "uuid"):
                return {"type": "string", "format": _TEXT_FORMATS[base.__name__]}
            if base.__name__ == "Decimal" and base.__module__ in ("decimal", "_decimal", "_pydecimal"):
                return {"type": "string"} if self._is_output else {"type": ["number", "string"]}
            if base.__name__ == "PurePath":
                return {"type": "string"}
        if issubclass(hint, (list, tuple, set, frozenset, dict)):
            return self._describe_container(hint, (), hint)
        raise UnreadableHint(f"{show_type(hint)} is not known")

    def _describe_named(self, hint, key):
        """Describe a class with fields as a definition of its own, so that it may hold itself."""
        if key in self._names:
            self._uses[self._names[key]] += 1
            return {"$ref": f"#/$defs/{self._names[key]}"}
        name = base = "".join(letter if letter.isalnum() else "_" for letter in hint.__name__)
        while name in self._definitions:
            name = f"{base}_{len(self._definitions)}"
        self._names[key], self._definitions[name], self._uses[name] = name, {}, 1
        if is_pydantic(hint) or is_msgspec(hint):
            self._definitions[name] = self._describe_foreign(hint, name)
        else:
            self._definitions[name] = self._describe_fields(hint)
        return {"$ref": f"#/$defs/{name}"}

    def _describe_foreign(self, hint, name):
        """Return the schema that pydantic or msgspec makes of its own class, with its definitions beside ours."""
        if is_pydantic(hint):
            template, mode = f"#/$defs/{name}.{{model}}", "serialization" if self._is_output else "validation"
            schema = hint.model_json_schema(ref_template=template, mode=mode)
        else:
            import msgspec

            (schema,), inner = msgspec.json.schema_components([hint], ref_template=f"#/$defs/{name}.{{name}}")
            schema = {**schema, "$defs": inner}
        for inner_name, definition in schema.pop("$defs", {}).items():
            self._definitions[f"{name}.{inner_name}"] = definition
        own = schema.get("$ref", "").rpartition("/")[2]
        return self._definitions[own] if set(schema) == {"$ref"} and own in self._definitions else schema

    def _describe_fields(self, hint):
        properties, required = {}, []
        for field, kind, is_required, default in list_fields(hint, self._is_output):
            properties[field] = self.describe(kind)
            if is_required:
                required.append(field)
            elif isinstance(default, (str, int, float, bool)):
                properties[field] = {**properties[field], "default": default}
        schema = {"type": "object", "properties": properties, **({"required": required} if required else {})}
        note = (hint.__doc__ or "").strip()
        # Dataclasses and named tuples that have no docstring get one that repeats their fields.
        if note and not note.startswith(f"{hint.__name__}("):
            schema["description"] = note[:MAX_DESCRIPTION_CHARS]
        return schema

    def _describe_annotated(self, hint, notes):
        schema = dict(self.describe(hint))
        size = {"string": "Length", "array": "Items", "object": "Properties"}.get(schema.get("type"), "Length")
        for note in _list_notes(notes):
            for attribute, keyword in (*_BOUND_KEYWORDS, ("min_length", f"min{size}"), ("max_length", f"max{size}")):
                value = getattr(note, attribute, None)
                if value is not None:
                    schema[keyword] = getattr(value, "pattern", value)
            for attribute in ("title", "description", "documentation"):
                text = getattr(note, attribute, None)
                if isinstance(text, str):
                    schema["title" if attribute == "title" else "description"] = text[:MAX_DESCRIPTION_CHARS]
        return schema


def _list_notes(notes):
    """Return the notes of an annotation, and those within a pydantic field, without plain text."""
    for note in notes:
        if not isinstance(note, (str, int, float)):
            yield note
            inner = getattr(note, "metadata", None)
            yield from inner if isinstance(inner, list) else ()


def is_pydantic(hint):
    """Return whether a class is a model of pydantic."""
    return hasattr(hint, "model_json_schema") and hasattr(hint, "model_validate")


def is_msgspec(hint):
    """Return whether a class is a Struct of msgspec."""
    return hasattr(hint, "__struct_fields__") and hasattr(hint, "__struct_config__")


def is_named_tuple(hint):
    """Return whether a class is a NamedTuple."""
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def is_typed_dict(hint):
    """Return whether a class is a TypedDict."""
    return isinstance(hint, type) and issubclass(hint, dict) and hasattr(hint, "__total__")


def has_fields(hint):
    """Return whether a class describes an object by its fields."""
    is_own = is_named_tuple(hint) or is_typed_dict(hint) or hasattr(hint, "__dataclass_fields__")
    return is_own or is_pydantic(hint) or is_msgspec(hint)


def list_fields(hint, is_output=False):
    """Return the fields of a dataclass, NamedTuple or TypedDict: name, type, whether required, and the default."""
    kinds = typing.get_type_hints(hint, include_extras=True)
    if is_typed_dict(hint):
        return [(name, kind, name in hint.__required_keys__, None) for name, kind in kinds.items()]
    if is_named_tuple(hint):
        defaults = hint._field_defaults
        return [
            (name, kinds.get(name, typing.Any), is_output or name not in defaults, defaults.get(name))
            for name in hint._fields
        ]
    import dataclasses

    fields = [field for field in dataclasses.fields(hint) if is_output or field.init]
    missing = dataclasses.MISSING
    return [
        (
            field.name,
            kinds[field.name],
            is_output or (field.default is missing and field.default_factory is missing),
            None if field.default is missing else field.default,
        )
        for field in fields
    ]
