"""Do what bulk operations ask for, a few executions of each in turn."""

from functools import partial
from typing import Final

import structlog

from domain import bulk_operations
from domain.ports import Store
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError

MAX_OPERATIONS: Final = 32
# So many executions of one operation, before the next operation has its turn.
MAX_TURN_EXECUTIONS: Final = 25

_log = structlog.get_logger("paddock.bulk")


class BulkProcessor:
    """Process the executions of operations, each in a transaction of its own.

    Any number of processes may do so at the same time, and one that is killed leaves nothing half done.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def process_operations(self) -> bool:
        """Give every running operation a turn. Return whether there may be more to do."""
        async with self._store.system_transaction() as tx:
            running = await tx.bulk_operations.list_running(MAX_OPERATIONS)
        for tenant_id, operation_id in running:
            async with self._store.tenant_transaction(tenant_id) as tx:
                pending = await tx.bulk_operations.list_pending(operation_id, MAX_TURN_EXECUTIONS)
                if not pending:
                    await tx.bulk_operations.complete_empty(operation_id, tx.now)
            for execution_id in pending:
                await self._process_execution(tenant_id, operation_id, execution_id)
        return bool(running)

    async def _process_execution(self, tenant_id: str, operation_id: str, execution_id: str) -> None:
        process = partial(bulk_operations.process_execution, operation_id=operation_id, execution_id=execution_id)
        try:
            await self._store.run(tenant_id, process, retry=True)
        except Exception as error:
            if isinstance(error, DomainError) and error.code in DATABASE_OUTAGE_CODES:
                raise
            # Without this, the execution would be the first in every later round.
            _log.exception("a bulk operation cannot deal with an execution", execution_id=execution_id)
            async with self._store.tenant_transaction(tenant_id) as tx:
                await bulk_operations.fail_execution(tx, operation_id, execution_id)
