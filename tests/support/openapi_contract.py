"""Reduce an OpenAPI document to its contract: what clients on the wire depend on, without names and texts.

Kept: paths, methods, parameters, media types, statuses, fields, types, bounds and defaults. Left out: operation ids,
schema names, tags, titles, descriptions and examples. References are replaced by what they refer to.
"""

import hashlib
import json
from typing import Any

TEXT_KEYS = {"title", "description", "summary", "example", "examples"}
SCHEMA_MAPS = {"properties", "patternProperties", "$defs"}
UNIONS = {"anyOf", "oneOf", "allOf"}


def to_canonical_json(value: Any) -> str:
    """Return JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class ContractReader:
    """Read the contract of one document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def read_operations(self) -> dict[str, dict[str, Any]]:
        """Return the parts of every operation's contract, by method and path."""
        return {
            f"{method.upper()} {path}": self._read_operation(operation)
            for path, item in self._document["paths"].items()
            for method, operation in item.items()
        }

    def _read_operation(self, operation: dict[str, Any]) -> dict[str, Any]:
        parts: dict[str, Any] = {"security": operation.get("security", self._document.get("security"))}
        for parameter in operation.get("parameters", []):
            resolved = self._resolve(parameter)
            key = f"{resolved['in']} {resolved['name']}"
            assert key not in parts
            parts[key] = {
                **{name: value for name, value in resolved.items() if name not in {*TEXT_KEYS, "schema"}},
                "schema": self._read_schema(resolved["schema"], ()),
            }
        if "requestBody" in operation:
            body = self._resolve(operation["requestBody"])
            parts["body"] = [body.get("required", False), self._read_content(body["content"])]
        for status, response in operation["responses"].items():
            resolved = self._resolve(response)
            headers = {
                name: self._read_schema(header.get("schema"), ())
                for name, header in resolved.get("headers", {}).items()
            }
            parts[f"status {status}"] = [self._read_content(resolved.get("content", {})), headers]
        for kind, messages in operation.get("x-websocket", {}).items():
            parts[f"socket {kind}"] = [self._read_schema(message, ()) for message in messages]
        return parts

    def _read_content(self, content: dict[str, Any]) -> dict[str, Any]:
        return {media_type: self._read_schema(body.get("schema"), ()) for media_type, body in content.items()}

    def _read_schema(self, schema: Any, parents: tuple[str, ...]) -> Any:
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            reference = schema["$ref"]
            if reference in parents:
                # A recursive type, identified by how many references up it is found, without their names.
                return {"recursion": len(parents) - parents.index(reference)}
            resolved = self._resolve({"$ref": reference})
            siblings = {key: value for key, value in schema.items() if key != "$ref"}
            return self._read_schema({**resolved, **siblings}, (*parents, reference))
        result: dict[str, Any] = {}
        for key, value in schema.items():
            if key in TEXT_KEYS:
                continue
            if key in SCHEMA_MAPS:
                result[key] = {name: self._read_schema(field, parents) for name, field in value.items()}
            elif key in UNIONS:
                result[key] = sorted((self._read_schema(member, parents) for member in value), key=to_canonical_json)
            elif key in {"items", "additionalProperties", "not", "contains", "propertyNames"}:
                result[key] = self._read_schema(value, parents)
            elif key == "prefixItems":
                result[key] = [self._read_schema(item, parents) for item in value]
            elif key == "discriminator":
                mapping = value.get("mapping", {})
                members = {tag: self._read_schema({"$ref": ref}, parents) for tag, ref in mapping.items()}
                result[key] = {**value, "mapping": members}
            elif key in {"required", "enum"}:
                result[key] = sorted(value, key=to_canonical_json)
            else:
                result[key] = value
        return result

    def _resolve(self, value: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in value:
            target: Any = self._document
            for step in value["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            value = target
        return value


def hash_contract(document: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return a hash of every part of every operation's contract: what the file beside the test holds."""
    return {
        operation: {
            part: hashlib.sha256(to_canonical_json(content).encode()).hexdigest()[:16]
            for part, content in parts.items()
        }
        for operation, parts in ContractReader(document).read_operations().items()
    }
