"""A mounted directory: what is seen through its links, before and after it is replaced."""

from pathlib import Path

from loadtest.volume import Volume


def test_volume_is_replaced_as_a_whole(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "tls")
    volume.put({"tls.crt": b"one", "tls.key": b"its key"})
    links = [path.readlink() for path in (volume.cert, volume.key)]
    assert (volume.cert.read_bytes(), volume.key.read_bytes()) == (b"one", b"its key")
    before = volume.cert.resolve()
    (tmp_path / "cert").write_bytes(b"two")
    (tmp_path / "key").write_bytes(b"its key too")
    volume.put_pair(tmp_path / "cert", tmp_path / "key")
    assert (volume.cert.read_bytes(), volume.key.read_bytes()) == (b"two", b"its key too")
    assert [path.readlink() for path in (volume.cert, volume.key)] == links
    assert before.read_bytes() == b"one"  # who has it open is not disturbed
