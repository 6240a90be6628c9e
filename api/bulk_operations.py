"""Handle operations on many executions: start, list, get and cancel."""

from litestar import Response, Router, get, post

from api.idempotency import ResourceCreator
from api.operations import ANY_CALLER, IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import bulk_operations
from domain.bulk_operations import BulkOperation, NewBulkOperation
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page


@post("/executions/bulk", opt=require_scope("any", IDEMPOTENCY_KEY))
async def start_bulk_operation(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewBulkOperation
) -> Response[BulkOperation]:
    """Cancel, retry or delete up to 10,000 executions as one operation, which continues in the background.

    It takes the scope of the action on a single execution: `run:agents`, or `write:executions` for `delete`.
    """
    return await creator.create_idempotently(
        request, caller, lambda tx: bulk_operations.start_operation(tx, caller, data)
    )


@get("/executions/bulk", opt=require_scope("read:executions"))
async def list_bulk_operations(store: Store, caller: Caller, pagination: Page) -> Listing[BulkOperation]:
    """List operations, newest first, without their errors."""
    async with store.transaction(caller) as tx:
        return await bulk_operations.list_operations(tx, pagination)


@get("/executions/bulk/{operation_id:str}", opt=require_scope("read:executions"))
async def get_bulk_operation(store: Store, caller: Caller, operation_id: str) -> BulkOperation:
    """Return an operation with its progress and its first errors."""
    async with store.transaction(caller) as tx:
        return await bulk_operations.get_operation(tx, operation_id)


@post("/executions/bulk/{operation_id:str}/cancel", opt=ANY_CALLER, status_code=200)
async def cancel_bulk_operation(store: Store, caller: Caller, operation_id: str) -> BulkOperation:
    """Cancel an operation; what it has done stays. It takes the scope of its action."""
    async with store.transaction(caller) as tx:
        return await bulk_operations.cancel_operation(tx, caller, operation_id)


router = Router(
    "/",
    route_handlers=[start_bulk_operation, list_bulk_operations, get_bulk_operation, cancel_bulk_operation],
    tags=["executions"],
)
