"""What names a secret: parameters of queries, headers, keys. One rule for logs, the admin API and what commands print.

A name is judged by how it reads, so it is a guess: what is named in another way is not known to be one.
"""

from __future__ import annotations

import functools
import re
from typing import Final
from urllib.parse import unquote_to_bytes

_MARKS: Final = re.compile(rb"[^a-z0-9]")
_ENDS: Final = (
    b"token", b"key", b"secret", b"password", b"passwd", b"passphrase", b"pwd", b"signature", b"credential",
    b"credentials", b"assertion", b"authorization", b"jwt", b"cookie",
)  # fmt: skip
_NAMES: Final = frozenset({
    b"sig", b"pass", b"auth", b"code", b"sid", b"session", b"sessionid", b"jsessionid", b"phpsessid", b"accesskeyid",
    b"awsaccesskeyid", b"samlresponse", b"samlrequest", b"hmac",
})  # fmt: skip
"""`code` is OAuth's authorization code."""


@functools.lru_cache(maxsize=256)
def names_a_secret(name: bytes) -> bool:
    """Whether what has this name is probably a credential.

    Compared without case, escapes and punctuation: `access_token`, `X-Amz-Signature`, `apiKey`, `%74oken`. Remembered,
    since a service's parameters have few names: 0.06 µs instead of 2.
    """
    # `user[password]` and `a.key` end where their punctuation does; a name escaped twice is somebody's trick.
    for _ in range(2):
        name = unquote_to_bytes(name)
    name = _MARKS.sub(b"", name.lower())
    return name in _NAMES or name.endswith(_ENDS)
