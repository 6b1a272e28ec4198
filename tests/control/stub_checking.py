"""The checking process of `stub_service`: the file is the config as JSON, so that no loader has a part here."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from ambassador.config.schema import Config
from ambassador.control.checking import Checked, obey


def check(path: str) -> Checked:
    try:
        return Checked(config=msgspec.json.decode(Path(path).read_bytes(), type=Config))
    except msgspec.MsgspecError as error:
        return Checked(config=None, errors=(f"{path}:1:1: error: {error}",))


if __name__ == "__main__":
    obey(int(sys.argv[1]), int(sys.argv[2]), check)
