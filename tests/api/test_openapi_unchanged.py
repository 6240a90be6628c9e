"""Test that the API keeps its recorded contract: paths, parameters, fields, types, codes and statuses."""

import json
from pathlib import Path

from tests.support.openapi_contract import hash_contract

SNAPSHOT_FILE = Path(__file__).parent / "openapi.json"
# Recorded from the document before its schemas and operations were renamed. After an intended change of the API:
# python -m tests.api.test_openapi_unchanged
CONTRACT_FILE = Path(__file__).parent / "openapi_contract.json"


def list_differences(recorded: dict[str, dict[str, str]], current: dict[str, dict[str, str]]) -> list[str]:
    """Return the operations and their parts that differ, for the message of a failure."""
    return sorted(
        f"{operation}: {part}"
        for operation in {*recorded, *current}
        for part in {*recorded.get(operation, {}), *current.get(operation, {})}
        if recorded.get(operation, {}).get(part) != current.get(operation, {}).get(part)
    )


def test_document_differs_from_the_contract_in_names_and_texts_only() -> None:
    recorded, current = json.loads(CONTRACT_FILE.read_text()), hash_contract(json.loads(SNAPSHOT_FILE.read_text()))
    assert list_differences(recorded, current) == []
    assert recorded == current


def test_contract_detects_fields_and_statuses_but_not_names() -> None:
    document = json.loads(SNAPSHOT_FILE.read_text())
    recorded = hash_contract(document)
    renamed = json.loads(
        SNAPSHOT_FILE.read_text().replace('schemas/Agent"', 'schemas/Robot"').replace('"Agent": {', '"Robot": {')
    )
    assert hash_contract(renamed) == recorded
    get_agent = document["paths"]["/api/v1/agents/{agent_id}"]["get"]
    get_agent["responses"]["418"] = get_agent["responses"].pop("200")
    assert list_differences(recorded, hash_contract(document)) == [
        "GET /api/v1/agents/{agent_id}: status 200",
        "GET /api/v1/agents/{agent_id}: status 418",
    ]
    document = json.loads(SNAPSHOT_FILE.read_text())
    document["components"]["schemas"]["Tenant"]["properties"].popitem()
    assert list_differences(recorded, hash_contract(document)) == [
        "GET /api/v1/tenant: status 200",
        "PATCH /api/v1/tenant: status 200",
    ]


if __name__ == "__main__":
    contract = hash_contract(json.loads(SNAPSHOT_FILE.read_text()))
    CONTRACT_FILE.write_text(json.dumps(contract, indent=1, sort_keys=True) + "\n")
