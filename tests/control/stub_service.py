"""The real supervisor with stub workers and a config in JSON: `python -m tests.control.stub_service FILE WORKERS`."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from ambassador.cli.run import announcement_text
from ambassador.config.schema import Config
from ambassador.control.checking import Checked
from ambassador.control.service import serve


async def check(path: str) -> Checked:
    try:
        return Checked(config=msgspec.json.decode(Path(path).read_bytes(), type=Config))  # noqa: ASYNC240
    except msgspec.MsgspecError as error:
        return Checked(config=None, errors=(f"{path}:1:1: error: {error}",))


if __name__ == "__main__":
    file = sys.argv[1]
    first = msgspec.json.decode(Path(file).read_bytes(), type=Config)
    sys.exit(
        serve(
            first,
            announcement_text,
            config_file=file,
            workers=int(sys.argv[2]),
            module="tests.control.stub_worker",
            check=check,
        )
    )
