"""Reports of unexpected errors to Sentry, or whatever speaks its protocol, where `PADDOCK_SENTRY_DSN` names one."""

from collections.abc import MutableMapping
from typing import Any, Final

from domain.shared.secrets import Secret
from infra.version import VERSION

# Libraries whose errors quote what a statement was given, or the whole row that did not fit.
_QUOTING: Final = ("asyncpg", "sqlalchemy")


def open_error_reports(dsn: Secret, environment: str, component: str) -> None:
    """Send every error that is logged with its exception, from now on. Does nothing without a DSN.

    Neither requests nor local variables nor what the database says are sent: they hold what tenants keep to
    themselves."""
    if not dsn.reveal():
        return
    # A tenth of a second and some memory, for those that report alone.
    import sentry_sdk

    sentry_sdk.init(
        dsn.reveal(),
        environment=environment,
        release=f"paddock@{VERSION}",
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
    """Pass a log line on (a processor of structlog), and report its exception if it has one."""
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
    """Return a report without the messages of the database's errors: they quote rows (a hook of sentry-sdk)."""
    for exception in event.get("exception", {}).get("values", []):
        if str(exception.get("module")).partition(".")[0] in _QUOTING:
            exception["value"] = "left out, as it may quote rows; it is in the log"
    return event
