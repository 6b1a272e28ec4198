"""The real supervisor with stub workers and a config in JSON: `python -m tests.control.stub_service FILE WORKERS`."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from ambassador.cli.run import announcement_text
from ambassador.config.schema import Config
from ambassador.control.service import serve

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
            checking="tests.control.stub_checking",
        )
    )
