"""List the names that may break a rule, each with its reason. At most 40 of the product, and 10 of the tests."""

from typing import Final

_TRANSACTIONS = "names what a `with` block opens, as SQLAlchemy and asyncpg do"
_HEAVY = "a heavy module that is loaded where it is needed, so the package has no door that would load all of it"

EXCEPTIONS: Final[dict[str, str]] = {
    "function api/requests.py::MendingRequest.body": "overrides Litestar's method",
    "function api/requests.py::MendingRequest.json": "overrides Litestar's method",
    "function domain/ports.py::Tx.savepoint": _TRANSACTIONS,
    "function domain/ports.py::Store.transaction": _TRANSACTIONS,
    "function domain/ports.py::Store.tenant_transaction": _TRANSACTIONS,
    "function domain/ports.py::Store.system_transaction": _TRANSACTIONS,
    "function domain/ports.py::Store.autocommit": _TRANSACTIONS,
    "function infra/postgres/store.py::PostgresTx.savepoint": _TRANSACTIONS,
    "function infra/postgres/store.py::PostgresStore.transaction": _TRANSACTIONS,
    "function infra/postgres/store.py::PostgresStore.tenant_transaction": _TRANSACTIONS,
    "function infra/postgres/store.py::PostgresStore.system_transaction": _TRANSACTIONS,
    "function infra/postgres/store.py::PostgresStore.autocommit": _TRANSACTIONS,
    "door workers/agent/builtin_tools.py::infra.tools.http_request": _HEAVY,
    "door workers/agent/tools.py::infra.tools.custom": _HEAVY,
    "door workers/main.py::infra.llm.local_model": _HEAVY,
    "function infra/sandbox/guest/packages/paddock_context.py::Context.progress": "the name by which agents call it",
    "function infra/sandbox/guest/context.py::RunContext.progress": "the name by which agents call it",
    "function infra/llm/eventstream_frames.py::FramedResponse.aiter_bytes": "httpx's name, by which answers are read",
    "function domain/schemas/engine.py::SchemaChecker.descend": "jsonschema's name, by which its functions call it",
    "function domain/schemas/engine.py::SchemaChecker.evolve": "jsonschema's name, by which its functions call it",
    "variable infra/postgres/traces.py::one": "the name of a column of the database",
    "word docs/naming.md::is away": "the example of what not to write",
    "word infra/postgres/session.py::nobody": "the name of a role",
}

# Keys of violations in tests begin with these.
TEST_EXCEPTIONS: Final[dict[str, str]] = {
    "function tests/attacks/agent.py::": "each function is an attack, called by its name in the payload",
    "function tests/attacks/leftovers.py::": "each function is a kind of leftover, called by its name in the payload",
    "word tests/language/": "the words themselves",
    "word tests/journeys/test_code_review_example.py::": "text of the example's report",
}
