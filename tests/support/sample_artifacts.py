"""Artifacts recorded at a certain time, and what is wrong with those that are not."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from domain.artifacts import ArtifactRecord, build_record
from domain.shared.errors import DomainError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def record(sent: Any, execution_id: str | None = None) -> ArtifactRecord:
    body = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    return build_record(body, tenant_id="tenant-1", user_id="user-1", now=NOW, execution_id=execution_id)


def refusal(sent: Any, execution_id: str | None = None) -> DomainError:
    with pytest.raises(DomainError) as caught:
        record(sent, execution_id)
    return caught.value


def fields(sent: Any) -> list[str]:
    error = refusal(sent)
    assert error.code == "invalid_field"
    return [one.field for one in error.errors]


def body(sent: Any) -> Any:
    return json.loads(record(sent).body)
