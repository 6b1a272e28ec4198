from __future__ import annotations

import os

from ambassador.control.output import Output
from ambassador.control.provision import Equipment
from tests.control.test_deployment import deployment


def test_a_new_slot_is_told_alone() -> None:
    made = deployment("127.0.0.1:0")
    made.bind([0])
    output = Output(os.open(os.devnull, os.O_WRONLY))
    equipment = Equipment(made, output)
    assert equipment.open_slot(0)[0].sockets == ()
    order, descriptors = equipment.open_slot(1)
    assert [ref.slot for ref in order.sockets] == [1]
    assert len(descriptors) == 1
    assert equipment.drain_timeout_s == 20.0
    made.close()
    output.close(1.0)
