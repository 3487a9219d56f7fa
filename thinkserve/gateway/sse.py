"""Server-sent events, as OpenAI's streams use them: bytes in, payloads out, whatever the reads were.

`EventDecoder` is a plain object without I/O. Only `data` fields carry anything here; comments and other fields are
passed over, as the standard (WHATWG HTML, section 9.2) asks.
"""

from __future__ import annotations

from thinkserve.gateway.errors import UpstreamFailed

# An event that has grown past this without ending is no event of a chat stream.
MAX_EVENT_BYTES = 16 * 2**20

DONE = b"[DONE]"


class EventDecoder:
    """Cuts a byte stream into the payloads of its events."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, block: bytes) -> list[bytes]:
        """Take a read of any size; return the data of every event that it completes.

        Raises:
            UpstreamFailed: an event does not end.
        """
        data = self._tail + block
        if b"\r" in data:
            # A CR LF cut in two by the read stays in the tail until its other half is here.
            data = data.replace(b"\r\n", b"\n")
        events = data.split(b"\n\n")
        self._tail = events.pop()
        if len(self._tail) > MAX_EVENT_BYTES:
            raise UpstreamFailed(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return [payload for event in events if (payload := _payload(event))]


def _payload(event: bytes) -> bytes:
    """The data of one event; empty where it has none."""
    if event.startswith(b"data: ") and b"\n" not in event:  # nearly all
        return event[6:]
    lines = (line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(lines)
