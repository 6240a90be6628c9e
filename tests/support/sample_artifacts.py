"""Build artifacts recorded at a fixed time, and catch the refusal of others."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from domain.artifacts import ArtifactRecord, build_record
from domain.shared.errors import DomainError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def build_sample(sent: Any, execution_id: str | None = None) -> ArtifactRecord:
    body = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    return build_record(body, tenant_id="tenant-1", user_id="user-1", now=NOW, execution_id=execution_id)


def catch_refusal(sent: Any, execution_id: str | None = None) -> DomainError:
    with pytest.raises(DomainError) as caught:
        build_sample(sent, execution_id)
    return caught.value


def list_refused_fields(sent: Any) -> list[str]:
    error = catch_refusal(sent)
    assert error.code == "invalid_field"
    return [field_error.field for field_error in error.errors]


def read_stored_body(sent: Any) -> Any:
    return json.loads(build_sample(sent).body)
