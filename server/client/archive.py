"""KMs as they go over the wire, and as directories."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from server.client.errors import ClientError


def pack(directory: Path) -> bytes:
    """An exported directory as a ZIP. OSError when it cannot be read."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(directory.iterdir()):
            archive.write(file, file.name)
    return written.getvalue()


def unpack(content: bytes, directory: Path) -> Path:
    """Write what was exported into a new directory. ClientError when it is no KM, OSError when it cannot."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if any(Path(name).name != name or name in ("", ".", "..") for name in names):
                raise ClientError("The server sent files of odd names; nothing was written.")
            directory.mkdir(parents=True)
            for name in names:
                (directory / name).write_bytes(archive.read(name))
    except zipfile.BadZipFile as error:
        raise ClientError(f"What the server sent is no ZIP ({error}). Try again.") from error
    return directory
