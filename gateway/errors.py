"""The taxonomy: what happened, whose fault it is, what to tell the client, may it be tried again.

Laws. Whose fault it is decides health: only faults of the REPLICA reach `gateway.fleet.health`.
`reason` is a closed set of lower_snake words, the same in the metric label, in the log line and in
the API's `error.code`. An exception that is not a GatewayError is a bug.
The wording of a reply is chosen here or in `gateway.accept.reply`, and never holds another tenant's
data, a stack or a replica's address.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from gateway.vocabulary import Outcome, Seconds


class Fault(StrEnum):
    """Whose fault an error is."""

    CLIENT = "client"
    GATEWAY = "gateway"
    REPLICA = "replica"


class Retry(StrEnum):
    """When another attempt is right, given that no byte has reached the client."""

    NEVER = "never"
    ONCE = "once"  # the request may have been the cause: one more replica, not the whole fleet
    ALWAYS = "always"  # the replica cannot have begun


class GatewayError(Exception):
    """Anything that ends a request early. Concrete classes set every class variable."""

    fault: ClassVar[Fault]
    reason: ClassVar[str]
    status: ClassVar[int]
    outcome: ClassVar[Outcome]
    retry: ClassVar[Retry] = Retry.NEVER
    message: ClassVar[str]

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: Seconds | None = None,
    ) -> None:
        """`message` and `param` are shown to the client; `retry_after_s` becomes Retry-After."""
        super().__init__(message or self.message)
        self.param = param
        self.retry_after_s = retry_after_s


class ClientError(GatewayError):
    """The client's mistake; never retried, never held against a replica."""

    fault = Fault.CLIENT
    outcome = Outcome.REJECTED


class InvalidRequest(ClientError):
    reason = "invalid_request"
    status = 400
    message = "The request could not be understood."


class MalformedHttp(ClientError):
    """Bytes that are not HTTP/1.1 as RFC 9112 allows it."""

    reason = "malformed_http"
    status = 400
    message = "The request is not valid HTTP/1.1."


class UnsupportedTransferEncoding(ClientError):
    reason = "unsupported_transfer_encoding"
    status = 501
    message = "Only the chunked transfer encoding is supported."


class ExpectationFailed(ClientError):
    reason = "expectation_failed"
    status = 417
    message = "Only Expect: 100-continue is supported."


class InvalidKey(ClientError):
    """It holds no key, or one that is nobody's. Which, an attacker is not told."""

    reason = "invalid_api_key"
    status = 401
    message = "An API key is required, as in `Authorization: Bearer KEY`; this is not a valid one."


class ModelNotAllowed(ClientError):
    reason = "model_not_allowed"
    status = 403
    message = "This API key may not use this model."


class PolicyDenied(ClientError):
    """The operator's policy says no; its reason is shown."""

    reason = "policy_denied"
    status = 403
    message = "The policy does not allow this."


class UnknownModel(ClientError):
    reason = "model_not_found"
    status = 404
    message = "The model does not exist."


class UnknownPath(ClientError):
    reason = "unknown_path"
    status = 404
    message = "There is nothing at this path."


class UnknownFile(ClientError):
    reason = "file_not_found"
    status = 404
    message = "There is no such file."


class UnknownBatch(ClientError):
    reason = "batch_not_found"
    status = 404
    message = "There is no such batch."


class FileInUse(ClientError):
    reason = "file_in_use"
    status = 409
    message = "A batch that has not ended needs this file."


class BatchEnded(ClientError):
    reason = "batch_ended"
    status = 409
    message = "The batch has ended."


class MethodNotAllowed(ClientError):
    reason = "method_not_allowed"
    status = 405
    message = "This path does not answer this method."


class BodyTooLarge(ClientError):
    reason = "body_too_large"
    status = 413
    message = "The request body is larger than this gateway accepts."


class HeadersTooLarge(ClientError):
    reason = "headers_too_large"
    status = 431
    message = "The request headers are larger than this gateway accepts."


class RequestTimedOut(ClientError):
    """The client took too long to send its request."""

    reason = "request_timed_out"
    status = 408
    message = "The request did not arrive in time."


class ClientGone(ClientError):
    """Nobody is listening any more; no reply is sent."""

    reason = "client_gone"
    status = 499  # never sent; the number other proxies write in their logs
    outcome = Outcome.CLIENT_GONE
    message = "The client closed the connection."


class ClientStalled(ClientGone):
    """The client stopped reading for so long that we let it go."""

    reason = "client_stalled"
    message = "The client stopped reading."


class Rejected(GatewayError):
    """No room, said at once. The client may come back after `retry_after_s`."""

    fault = Fault.GATEWAY
    outcome = Outcome.REJECTED


class TooManyRequests(Rejected):
    reason = "too_many_requests"
    status = 503
    message = "The gateway is serving as many requests as it may; try again soon."


class RateLimited(Rejected):
    """A tenant has had what it may have in a minute."""

    reason = "rate_limit_exceeded"
    status = 429
    message = "The rate limit is reached; try again later."


class TooManyAtOnce(Rejected):
    """A tenant has as many requests open as it may."""

    reason = "too_many_at_once"
    status = 429
    message = "Too many requests are being served at once; try again later."


class QuotaExhausted(Rejected):
    """A tenant has used its budget; code as OpenAI's clients know it."""

    reason = "insufficient_quota"
    status = 429
    message = "The budget is used up."


class Draining(Rejected):
    reason = "draining"
    status = 503
    message = "This gateway is shutting down; try again."


class TooManyWatchers(Rejected):
    """Of the console."""

    reason = "too_many_watchers"
    status = 503
    message = "As many watch the console as may."


class QueueFull(Rejected):
    reason = "queue_full"
    status = 503
    message = "Too much is waiting already; try again later."


class TenantQueueFull(Rejected):
    reason = "tenant_queue_full"
    status = 429
    message = "Too many of your requests are waiting already; try again later."


class DeadlineInfeasible(Rejected):
    reason = "deadline_infeasible"
    status = 429
    message = "The deadline cannot be met at the moment; try again later."


class Evicted(GatewayError):
    """It waited, and was sent away unserved."""

    fault = Fault.GATEWAY
    outcome = Outcome.EVICTED


class WaitedTooLong(Evicted):
    reason = "waited_too_long"
    status = 503
    message = "The request has waited for as long as it may; try again later."


class Displaced(Evicted):
    reason = "displaced"
    status = 503
    message = "The request made room for others; try again later."


class DeadlineMissed(Evicted):
    reason = "deadline_missed"
    status = 504
    message = "The deadline passed while the request waited."


class CutShort(GatewayError):
    """The grace of a shutdown ended while the request was still being served."""

    fault = Fault.GATEWAY
    reason = "cut_short"
    status = 503
    outcome = Outcome.FAILED
    message = "This gateway shut down before the response was complete."


class PolicyUnavailable(GatewayError):
    """Whoever decides has not: then nobody may. It is we who owe the decision."""

    fault = Fault.GATEWAY
    reason = "policy_unavailable"
    status = 503
    outcome = Outcome.FAILED
    message = "It could not be decided whether this is allowed; try again."


class NoReplica(GatewayError):
    fault = Fault.GATEWAY
    reason = "no_replica"
    status = 503
    outcome = Outcome.FAILED
    message = "No replica can serve this model now; try again."


class Bug(GatewayError):
    """An exception nobody foresaw. The traceback is in the log, not in the reply."""

    fault = Fault.GATEWAY
    reason = "bug"
    status = 500
    outcome = Outcome.FAILED
    message = "The gateway failed; the failure has been recorded."


class ReplicaError(GatewayError):
    """A replica did not do its part."""

    fault = Fault.REPLICA
    outcome = Outcome.FAILED


class ConnectFailed(ReplicaError):
    reason = "connect_failed"
    status = 502
    retry = Retry.ALWAYS
    message = "The replica could not be reached."


class ConnectTimedOut(ReplicaError):
    reason = "connect_timed_out"
    status = 504
    retry = Retry.ALWAYS
    message = "The replica could not be reached in time."


class ReplicaUnavailable(ReplicaError):
    """It answered 502, 503 or 504 before doing any work for us."""

    reason = "replica_unavailable"
    status = 503
    retry = Retry.ALWAYS
    message = "The replica is not serving at the moment."


class ReplicaFailed(ReplicaError):
    """It answered 500, or another 5xx that is not in the taxonomy."""

    reason = "replica_failed"
    status = 500
    retry = Retry.ONCE
    message = "The replica failed."


class ClosedBeforeReply(ReplicaError):
    """The connection closed before the first byte of a response, on a request it had in full."""

    reason = "closed_before_reply"
    status = 502
    retry = Retry.ONCE
    message = "The replica closed the connection without answering."


class FirstByteTimedOut(ReplicaError):
    """Never retried: the engine is working on it, and another would only add load."""

    reason = "first_byte_timed_out"
    status = 504
    message = "The replica did not answer in time."


class ProtocolBroken(ReplicaError):
    reason = "protocol_broken"
    status = 502
    message = "The replica answered with something that is not HTTP."


class StreamStalled(ReplicaError):
    reason = "stream_stalled"
    status = 504
    message = "The replica stopped sending in the middle of the response."


class StreamBroken(ReplicaError):
    reason = "stream_broken"
    status = 502
    message = "The replica's connection broke in the middle of the response."
