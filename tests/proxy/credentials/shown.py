"""What a credential writes into a head."""

from __future__ import annotations

import logging
from unittest.mock import patch

from ambassador.messages import Fields, Request, RequestHead
from ambassador.proxy.credentials import Credential, Means
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.secret import Secret, Secrets

ENDPOINT = Endpoint("http://127.0.0.1:80", host="127.0.0.1", port=80)
WALL_S = 1_795_761_874.25


class GivenSecrets(Secrets):
    """Secrets that are variables of no environment."""

    def __init__(self, **values: str) -> None:
        super().__init__(logging.getLogger("test"))
        self.values = values

    def get(self, reference: str) -> Secret:
        with patch.dict("os.environ", self.values):
            return super().get(reference)


def means(wall_s: float = WALL_S, /, **values: str) -> Means:
    """What credentials are made with, where `env:NAME` is the value of this name."""
    return Means(GivenSecrets(**values), lambda: wall_s)


def put(credential: Credential, *fields: tuple[bytes, bytes]) -> Fields:
    """The fields of a head that had `fields` before."""
    request = Request("GET", b"/", [], 1)
    head = RequestHead("GET", b"/", b"a", list(fields))
    assert credential.in_hand(request)
    credential.put(request, head, ENDPOINT)
    return head.fields
