"""Reports of unexpected errors to Sentry, or whatever speaks its protocol, where `PADDOCK_SENTRY_DSN` names one."""

from collections.abc import MutableMapping
from typing import Any

from domain.secrets import Secret
from infra.version import VERSION


def open_error_reports(dsn: Secret, environment: str, component: str) -> None:
    """Send every error that is logged with its exception, from now on. Does nothing without a DSN.

    Neither requests nor local variables are sent: both hold what tenants keep to themselves."""
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
