"""Report unexpected errors to Sentry, or to a server that speaks its protocol, where `PADDOCK_SENTRY_DSN` names one."""

from collections.abc import MutableMapping
from typing import Any, Final

from domain.shared.secrets import Secret
from infra.log_mask import mask_logged_text
from infra.version import PADDOCK_VERSION

# Libraries whose errors quote the arguments of a statement, or the whole row that did not fit.
_QUOTING_LIBRARIES: Final = ("asyncpg", "sqlalchemy")


def open_error_reports(dsn: Secret, environment: str, component: str) -> None:
    """Send every error that is logged with its exception, from now on. Does nothing without a DSN.

    Requests, local variables and messages of the database are left out: they hold tenants' data."""
    if not dsn.reveal():
        return
    # The import takes a tenth of a second and some memory, which only processes that report pay.
    import sentry_sdk

    sentry_sdk.init(
        dsn.reveal(),
        environment=environment,
        release=f"paddock@{PADDOCK_VERSION}",
        default_integrations=False,
        auto_enabling_integrations=False,
        send_default_pii=False,
        max_request_body_size="never",
        include_local_variables=False,
        include_source_context=False,
        before_send=redact_rows,
    )
    sentry_sdk.set_tag("component", component)


def report_exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Report the exception of a log line, if it has one, and pass the line on (a processor of structlog)."""
    if event.get("level") in ("error", "critical") and (info := event.get("exc_info")):
        import sentry_sdk

        if sentry_sdk.is_initialized():
            with sentry_sdk.new_scope() as scope:
                scope.set_tag("logger", str(event.get("logger")))
                scope.set_tag("event", str(event.get("event")))
                if request_id := event.get("request_id"):
                    scope.set_tag("request_id", request_id)
                sentry_sdk.capture_exception(None if info is True else info)
    return event


def redact_rows(event: Any, _: Any) -> Any:
    """Remove secrets of a run from a report, and the messages of the database's errors, which quote rows.

    A hook of sentry-sdk.
    """
    for exception in event.get("exception", {}).get("values", []):
        if str(exception.get("module")).partition(".")[0] in _QUOTING_LIBRARIES:
            exception["value"] = "left out, as it may quote rows; it is in the log"
        elif isinstance(exception.get("value"), str):
            exception["value"] = mask_logged_text(exception["value"])
    return event
