"""Describe to a client why its request is refused."""

from collections.abc import Mapping


class WireRefusal(Exception):
    """Answer a request with an error. `should_retry` tells the client whether to try again; None lets it decide."""

    def __init__(  # noqa: PLR0913 - what an error of OpenAI consists of
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        should_retry: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after, self.should_retry = status, retry_after, should_retry
        usual = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind or usual, "param": param, "code": code}}

    def name_field(self, option_fields: Mapping[str, str]) -> "WireRefusal":
        """Return the refusal with the request's own name of an option that a model cannot apply as its `param`."""
        error = self.body["error"]
        if error["code"] == "unsupported_option":
            error["param"] = option_fields.get(error["param"] or "", error["param"])
        return self

    @property
    def headers(self) -> dict[str, str]:
        """The headers that tell the client whether and when to try again."""
        headers = {} if self.should_retry is None else {"x-should-retry": "true" if self.should_retry else "false"}
        return headers if self.retry_after is None else {**headers, "Retry-After": f"{max(0.0, self.retry_after):g}"}
