"""Reading a file that a config names: regular files only, up to a size, and never waiting.

A pipe keeps its reader waiting for ever, and a device may never end; either would hold up a thread that reads again
what has changed, or the start. What the opened descriptor is decides, not what the path was a moment before.
"""

from __future__ import annotations

import os
import stat
from typing import Final

_READ_BYTES: Final = 1024 * 1024


class UnfitFile(Exception):
    """A file that cannot be read; the text says why in words that follow its name, and holds nothing of it."""


def read_regular(path: str, most_bytes: int) -> bytes:
    """What a file holds.

    Raises `UnfitFile`: it cannot be opened, is no regular file, or is larger than `most_bytes`.
    """
    try:
        # Without waiting for whoever writes into a pipe; and a terminal must not become the process's own.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise UnfitFile(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise UnfitFile("cannot be read: its name holds a zero byte") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnfitFile("is not a file")
        parts, left = [], most_bytes + 1
        while left and (part := os.read(descriptor, min(left, _READ_BYTES))):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise UnfitFile(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if not left:
        raise UnfitFile(f"is larger than {_size(most_bytes)}")
    return b"".join(parts)


def _size(size_bytes: int) -> str:
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} bytes"
