"""A worker's side of its supervisor's store: questions and answers over a unix stream socket, without waiting.

What is asked while nothing is under way is sent at once; what is asked meanwhile goes out together when the answer
has come. So one batch is under way at most, and batches grow by themselves when the store is slow.

A batch that is not answered in time is answered None, and so is everything that is asked until its answer does come:
that says that the store is back. The socket is made once: when it closes, the supervisor is gone, and so is the store.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from ambassador.state.bridge import Answered, Asked, Batch, Bridge
from ambassador.state.frames import (
    GREETING,
    HELLO,
    MOST_OPERATIONS,
    Answers,
    Malformed,
    Questions,
    Unpacker,
    decode_reply,
    pack,
)
from ambassador.state.protocol import Operation

_READ: Final = 64 * 1024


class LocalScope(Bridge):
    """A `scope.Scope` over `sock`, the worker's end, which belongs to it from now on.

    To be watched: `sock` for both directions (edge-triggered will do), and `bell.sock` for reading; `ready` for both.
    """

    def __init__(
        self, sock: socket.socket, time: Callable[[], float], alarm: Callable[[float], None]
    ) -> None:
        super().__init__(time, alarm)
        sock.setblocking(False)
        self.sock = sock
        # What is asked before the store has said anything goes out behind the greeting, and has its time for an answer.
        self.up = True
        self._greeted = False
        self._closed = False
        self._unpacker = Unpacker()
        self._out = bytearray(HELLO)
        self._asked: deque[Asked] = deque()
        self._flying: Batch | None = None
        self._number = 0
        self._delivering = False
        self._write()

    def ask(self, operation: Operation, answered: Answered | None = None) -> None:
        """Have an operation done; see `scope.Scope`."""
        if not self.up:
            self._refuse(answered)
            return
        self._asked.append(Asked(operation, answered))
        if not self._delivering:
            self._send_next()

    def ready(self) -> None:
        """Deliver what has come, and send on what did not fit."""
        self.bell.hush()
        self._delivering = True  # what callbacks ask goes out together, afterwards
        self._read()
        self._deliver_refused()
        self._finish()

    def pulse(self) -> None:
        """See whether the batch under way is overdue."""
        self._delivering = True
        self._read()
        flying = self._flying
        if flying is not None and self.up:
            if flying.is_overdue(self._time()):
                self._fall()
            else:
                self._alarm(flying.due)
        self._finish()

    def _finish(self) -> None:
        self._delivering = False
        self._send_next()
        self._write()
        self._raise_errors()

    def close(self, within_s: float) -> None:
        """Send what is left within this time. Nothing is answered any more."""
        try:
            self.sock.settimeout(within_s)
            while self._asked and not self._closed:
                self._send()
            if self._out:
                self.sock.sendall(self._out)
        except OSError:
            pass  # whoever does not read in time loses what was meant for it
        self._closed = True
        self.up = False
        self._asked.clear()
        self._out.clear()

    # Sending

    def _send_next(self) -> None:
        if self._asked and self._flying is None:
            self._send()

    def _send(self) -> None:
        asked = [self._asked.popleft() for _ in range(min(len(self._asked), MOST_OPERATIONS))]
        batch = self._flying = Batch(asked, self._time())
        self._number += 1
        self.operations += len(asked)
        self._out += pack(Questions(self._number, batch.operations))
        self._alarm(batch.due)
        self._write()

    def _write(self) -> None:
        while self._out and not self._closed:
            try:
                sent = self.sock.send(self._out)
            except BlockingIOError:
                return
            except OSError:
                self._lose()
                return
            del self._out[:sent]

    # Receiving

    def _read(self) -> None:
        while not self._closed:
            try:
                data = self.sock.recv(_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            try:
                for body in self._unpacker.feed(data):
                    self._take(body)
            except (Malformed, msgspec.MsgspecError):
                self._lose()

    def _take(self, body: bytes) -> None:
        if not self._greeted:
            if body != GREETING:
                raise Malformed
            self._greeted = True
            self._call_again()
            return
        reply = decode_reply(body)
        if not isinstance(reply, Answers):
            for event in reply.events:
                self._tell(event)
        elif reply.number == self._number and not self._closed:
            self._take_answers(reply)

    def _take_answers(self, reply: Answers) -> None:
        batch, self._flying = self._flying, None
        if batch is None:
            return
        self._send_next()
        if batch.given_up:
            self.up = True
            self._call_again()
        elif len(reply.answers) == len(batch.asked):
            self._deliver(batch.asked, reply.answers)
        else:
            self._deliver_none(batch.asked)
            raise Malformed

    # The store is away

    def _fall(self) -> None:
        """Answer None to everybody. A batch under way stays so: its answer says that the store is back."""
        self.losses += self.up
        self.up = False
        batch = self._flying
        if batch is not None and not batch.given_up:
            batch.given_up = True
            self._deliver_none(batch.asked)
        asked, self._asked = self._asked, deque()
        self._deliver_none(asked)

    def _lose(self) -> None:
        """The other side is gone, or says what cannot be understood: there is no store from now on."""
        self._closed = True
        self._out.clear()
        self._fall()
