"""Parse the JSON Schemas of an uploaded archive: in its manifest, in files that the manifest names, and of its code."""

from typing import Any, Final

import msgspec

from domain import schemas
from domain.shared.errors import DomainError
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.yaml_reader import YamlError, read_yaml

SCHEMA_FIELDS: Final = ("input_schema", "output_schema")
MAX_SCHEMA_PATH_CHARACTERS: Final = 500
MAX_SIGNATURE_PROBLEMS: Final = 10
MAX_PROBLEM_CHARACTERS: Final = 1000


class SignatureSchemas(msgspec.Struct, kw_only=True):
    """Hold the schemas of an entrypoint's type hints, and what is wrong with hints that have none."""

    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    problems: list[str] = []


class BadArchive(Exception):
    """Report why an archive cannot become a version. The message names the file, and the line if there is one."""


def parse_schema_field(file: str, key: str, value: Any) -> dict[str, Any] | str | None:
    """Return a schema, or the path of the file that holds it."""
    if value is None or isinstance(value, dict):
        return None if value is None else parse_archive_schema(f"{file}: ", key, value)
    parts = value.split("/") if isinstance(value, str) else [""]
    if not all(parts) or {".", ".."} & set(parts) or not value.isprintable() or len(value) > MAX_SCHEMA_PATH_CHARACTERS:
        raise BadArchive(f"{file}: `{key}` must be a JSON Schema, or the path of a file in the archive that holds one.")
    return str(value)


def parse_archive_schema(where: str, key: str, value: Any) -> dict[str, Any]:
    """Return a schema of an archive. Errors: `BadArchive`, naming the place of each problem behind `where`."""
    try:
        return schemas.parse_schema(value, key)
    except DomainError as error:
        raise BadArchive(where + "; ".join(f"`{item.field}` {item.message}" for item in error.errors)) from None


def parse_schema_file(path: str, key: str, data: bytes) -> dict[str, Any]:
    """Return the schema in a file of the archive, which is JSON or YAML. Errors: `BadArchive`."""
    try:
        if path.endswith((".yaml", ".yml")):
            document = read_yaml(data.decode())
            if document.duplicates:
                raise BadArchive(f"{path}, line {document.duplicates[0].line}: {document.duplicates[0].message}")
            value = document.value
        else:
            check_json(data)
            value = msgspec.json.decode(data)
    except YamlError as error:
        raise BadArchive(f"{path}, line {error.line}: {error.message}") from None
    except JsonTooLarge as error:
        raise BadArchive(f"{path}: {error.reason}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArchive(f"{path}: is not JSON: {error}.") from None
    return parse_archive_schema(f"{path}: ", key, value)


def parse_signature(answer: bytes | None) -> SignatureSchemas:
    """Return the schemas that a sandbox read from type hints. None is trusted: what is no schema is a problem."""
    try:
        signature = msgspec.json.decode(answer or b"null", type=SignatureSchemas | None) or SignatureSchemas()
    except (msgspec.MsgspecError, RecursionError):
        return SignatureSchemas(problems=["what was read of them is no schema"])
    signature.problems = [problem[:MAX_PROBLEM_CHARACTERS] for problem in signature.problems[:MAX_SIGNATURE_PROBLEMS]]
    for key in SCHEMA_FIELDS:
        schema = getattr(signature, key)
        if schema is None:
            continue
        try:
            setattr(signature, key, schemas.parse_schema(schema, key))
        except DomainError as error:
            setattr(signature, key, None)
            signature.problems.append(error.detail[:MAX_PROBLEM_CHARACTERS].removesuffix("."))
    return signature
