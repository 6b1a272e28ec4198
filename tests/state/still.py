"""A bridge to nowhere: it keeps what it is asked, and a test answers by hand."""

from __future__ import annotations

from ambassador.state.bridge import Answered, Bridge
from ambassador.state.protocol import Answer, Event, Operation


class Still(Bridge):
    def __init__(self, *, up: bool = True) -> None:
        super().__init__(lambda: 0.0, lambda _when: None)
        self.bell.close()
        self.bell.sock.close()
        self.up = up
        self.asked: list[Operation] = []
        self._waiting: list[Answered | None] = []

    def ask(self, operation: Operation, answered: Answered | None = None) -> None:
        self.asked.append(operation)
        self._waiting.append(answered)

    def answer(self, answer: Answer | None) -> None:
        """Answer the oldest question that has no answer."""
        answered = self._waiting.pop(0)
        if answer is not None:
            self._count(answer)
        if answered is not None:
            answered(answer)

    def publish(self, event: Event) -> None:
        self._tell(event)

    def come_back(self) -> None:
        self.up = True
        self._call_again()
