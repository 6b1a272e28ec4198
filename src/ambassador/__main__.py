"""`python -m ambassador`, and the entry point of the `ambassador` command."""

from __future__ import annotations

import sys

from ambassador.cli import main

if __name__ == "__main__":
    sys.exit(main())
