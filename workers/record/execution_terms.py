"""Write the words by which executions are found, once they started and once they ended."""

import asyncio
from collections import defaultdict
from typing import Final

import structlog

from domain.executions import SearchedText, list_terms
from domain.ports import Store

MAX_SEARCHED_EXECUTIONS: Final = 100

_log = structlog.get_logger("paddock.search")


class TermWriter:
    """Write the words of executions that wait in the queue. Any number of processes may do so at the same time."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def write_terms(self) -> bool:
        """Write the words of a batch of executions. Return whether there may be more."""
        async with self._store.system_transaction() as tx:
            queued = await tx.execution_terms.list_queued(MAX_SEARCHED_EXECUTIONS)
        by_tenant = defaultdict[str, list[int]](list)
        for tenant_id, number in queued:
            by_tenant[tenant_id].append(number)
        for tenant_id, numbers in by_tenant.items():
            async with self._store.tenant_transaction(tenant_id) as tx:
                texts = await tx.execution_terms.load_texts(await tx.execution_terms.take_queued(numbers))
                for text in texts:
                    await tx.execution_terms.add(text.execution_id, await asyncio.to_thread(_list_terms, text))
        return len(queued) == MAX_SEARCHED_EXECUTIONS


def _list_terms(text: SearchedText) -> list[str]:
    try:
        return list_terms(text)
    except Exception:
        # Without this, the execution would be the first in every later round.
        _log.exception("an execution cannot be found by its words", execution_id=text.execution_id)
        return []
