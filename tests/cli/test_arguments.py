from __future__ import annotations

import argparse

from ambassador.cli.arguments import add_live


def test_live_commands_take_a_control_socket_or_an_admin_api() -> None:
    parser = argparse.ArgumentParser()
    add_live(parser)
    args = parser.parse_args(["--admin", "http://a", "--token", "env:T", "--json"])
    assert (args.control, args.admin, args.token, args.json) == (None, "http://a", "env:T", True)
