"""Errors as vLLM tells them: one exception, and the object it becomes on the wire."""

from http import HTTPStatus

import msgspec


class ApiError(Exception):
    """An answer other than 200. `kind` is the wire's `type`; `parameter` names what was wrong."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        kind: str | None = None,
        parameter: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind or status.phrase
        self.parameter = parameter

    def openai_body(self) -> bytes:
        """OpenAI's error object, with vLLM's integer code."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.parameter,
            "code": int(self.status),
        }
        return msgspec.json.encode({"error": error})

    def anthropic_body(self) -> bytes:
        """The error object of the messages route."""
        error = {"type": self.kind, "message": self.message}
        return msgspec.json.encode({"type": "error", "error": error})


def bad_request(message: str, parameter: str | None = None) -> ApiError:
    """What a request's content was refused for."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, "BadRequestError", parameter)


def malformed(error: msgspec.MsgspecError) -> ApiError:
    """A body that is no JSON, or JSON of the wrong shape; `param` as vLLM writes it."""
    text = str(error)
    _, has_path, path = text.rpartition(" - at `$")
    parameter = f"body{path.rstrip('`')}" if has_path else "body"
    return ApiError(HTTPStatus.BAD_REQUEST, f"1 validation error:\n  {text}", None, parameter)


def unknown_model(name: str, served: str) -> ApiError:
    return ApiError(
        HTTPStatus.NOT_FOUND,
        f"The model `{name}` does not exist. Valid aliases: {served}.",
        "NotFoundError",
        "model",
    )
