"""Text of others, made fit for a line of a log or a table: it can neither end the line nor draw on a terminal.

For what clients, other replicas, servers or the store have said. JSON needs none of this: it escapes by itself.
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text with everything escaped that does not print: `\x0a`, `\u202e`, `\U000e0001`.

    A control character, an unpaired surrogate, whatever changes the direction of writing, any space but the plain one.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
