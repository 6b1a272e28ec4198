"""The config that a command is about: a file's, or that of the running service."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ambassador.cli import NO

if TYPE_CHECKING:
    from ambassador.config.schema import Config


def file_config(path: str, *, as_json: bool) -> Config | None:
    """The file's config; None when it has errors, which are then printed."""
    from ambassador.control.checking import check_file

    checked = check_file(path)
    if checked.config is None:
        if as_json:
            print(json.dumps({"errors": checked.errors}))
        for error in checked.errors:
            print(error, file=sys.stderr)
    return checked.config


def live_config(args: argparse.Namespace) -> Config:
    """The config that the service runs with. Raises Failure."""
    import msgspec

    from ambassador.cli.client import Failure, client
    from ambassador.config.schema import Config

    service = client(args)
    try:
        return msgspec.convert(service.get("/api/config"), Config)
    except msgspec.ValidationError as error:
        raise Failure(f"the service at {service.where} is of another version: {error}", NO) from None
