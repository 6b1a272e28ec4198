"""An object in a process of its own, so that what it does takes no time from what is done here.

Its methods are called from here, one at a time; arguments and results are pickled. It ends with this process.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

from loadtest import processes

_JOIN_S = 3.0


class ApartError(Exception):
    """A method raised something; the text says what."""


class Apart:
    """`make(*arguments)`, elsewhere. `first`: it comes before all others on its core, where that is allowed."""

    def __init__(self, make: Callable[..., Any], *arguments: object, first: bool = True) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        with processes.prioritised() if first and processes.may_prioritise() else contextlib.nullcontext():
            self._process.start()
        other.close()
        self._receive()

    def call(self, method: str, *arguments: object, **named: object) -> Any:
        """Call a method and wait for its result. Raises ApartError."""
        self._pipe.send((method, arguments, named))
        return self._receive()

    def set(self, **values: object) -> None:
        """Set attributes."""
        self._pipe.send(("", (), values))
        self._receive()

    def _receive(self) -> Any:
        try:
            error, result = self._pipe.recv()
        except EOFError:
            raise ApartError("its process has ended") from None
        if error is not None:
            raise ApartError(error)
        return result

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(_JOIN_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that decides the order of ends
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    thing: Any = None
    method = ""
    values: tuple[object, ...] = ()
    named: dict[str, object] = {}
    while True:
        error, result = None, None
        try:
            if thing is None:
                thing = make(*arguments)
            elif method:
                result = getattr(thing, method)(*values, **named)
            else:
                for name, value in named.items():
                    setattr(thing, name, value)
        except Exception as caught:  # noqa: BLE001 - raised over there
            error = f"{type(caught).__name__}: {caught}"
        try:
            pipe.send((error, result))
            method, values, named = pipe.recv()
        except (EOFError, OSError):
            return
