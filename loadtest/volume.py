"""A directory of files as Kubernetes mounts ConfigMaps and Secrets, for what reads files again while it runs."""

from collections.abc import Mapping
from pathlib import Path


class Volume:
    """Files that are links, through a link (`..data`) to a directory which is replaced as a whole, in one step."""

    def __init__(self, directory: Path) -> None:
        """In `directory`, which is made if it is not there."""
        self.directory = directory
        self._number = 0
        directory.mkdir(exist_ok=True)

    @property
    def cert(self) -> Path:
        """Where a Secret of the kind `kubernetes.io/tls` has its certificate."""
        return self.directory / "tls.crt"

    @property
    def key(self) -> Path:
        """And the certificate's key."""
        return self.directory / "tls.key"

    def put(self, files: Mapping[str, bytes]) -> None:
        """Have these contents, by the files' names."""
        self._number += 1
        made = self.directory / f"..{self._number}"
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        (self.directory / "..new").symlink_to(made.name)
        (self.directory / "..new").rename(self.directory / "..data")
        for name in files:
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")

    def put_pair(self, cert: str | Path, key: str | Path) -> None:
        """Have what these files hold as certificate and key."""
        self.put({self.cert.name: Path(cert).read_bytes(), self.key.name: Path(key).read_bytes()})
