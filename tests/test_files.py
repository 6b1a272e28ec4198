from __future__ import annotations

import os
from pathlib import Path

import pytest

from ambassador.files import UnfitFile, read_regular


def test_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_regular(str(path), 5) == b"12345"
    with pytest.raises(UnfitFile, match=r"^is larger than 4 bytes$"):
        read_regular(str(path), 4)
    path.write_bytes(b"x" * (2**20 + 1))
    assert len(read_regular(str(path), 2**21)) == 2**20 + 1
    with pytest.raises(UnfitFile, match=r"^is larger than 1 MiB$"):
        read_regular(str(path), 2**20)


def test_pipe_device_and_directory_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), str(tmp_path / "link"), str(tmp_path), "/dev/zero"):
        with pytest.raises(UnfitFile, match=r"^is not a file$"):
            read_regular(path, 10)


def test_file_that_is_away_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(UnfitFile, match=r"^cannot be read: No such file or directory$"):
        read_regular(str(tmp_path / "none"), 10)
    with pytest.raises(UnfitFile, match="zero byte"):
        read_regular("n\0ul", 10)


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    before = len(os.listdir("/proc/self/fd"))
    for path in (str(tmp_path / "f"), str(tmp_path)):
        try:
            read_regular(path, 1)
        except UnfitFile:
            continue
    assert len(os.listdir("/proc/self/fd")) == before
