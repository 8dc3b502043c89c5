"""The connection beneath an exchange: uvicorn's own protocol, with a handle for faults.

vLLM is served by uvicorn on httptools, so what uvicorn does on the wire is what vLLM does. This
class adds two things an ASGI application cannot have: to be told the moment the peer is gone, and
to write, close or reset below HTTP.
"""

import socket
import struct
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

STATE_KEY = "connection"
"""Where the ASGI scope's state carries the protocol."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class SimProtocol(HttpToolsProtocol):
    """One connection of the simulated replica."""

    on_lost: Callable[[], None] | None = None
    """Called once, when the connection is lost."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][STATE_KEY] = self

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        if self.on_lost is not None:
            self.on_lost()

    def write_raw(self, data: bytes) -> None:
        """Bytes as they are, past the response that uvicorn keeps."""
        self.transport.write(data)

    def close(self) -> None:
        """End the connection in order: what was written is sent first."""
        self.transport.close()

    def reset(self) -> None:
        """End the connection with a TCP reset, at once; nothing if it is ending already."""
        if self.transport.is_closing():
            return
        peer = self.transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()
