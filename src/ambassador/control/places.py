"""Where in the config a setting stands, for what only shows when it is put to use: an address that is taken, a log that
cannot be opened. Such an error is told as those of the check are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Unusable(Exception):
    """A setting is right as written, but cannot be used here; the text says which and why."""


def told(places: Mapping[str, str], setting: str, what: str) -> str:
    """`what` with the place of `setting` before it, or only its name. `places`: as in `config.load.Loaded`."""
    return f"{places.get(setting, setting)}: {what}"


@contextmanager
def blaming(places: Mapping[str, str], setting: str, kind: type[Exception]) -> Iterator[None]:
    """Errors of this kind, which hold nothing but a text that says what is meant, get the place of `setting` before it,
    if that is known.
    """
    try:
        yield
    except kind as error:
        if setting not in places:
            raise
        raise kind(told(places, setting, str(error))) from error.__cause__
