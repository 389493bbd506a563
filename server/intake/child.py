"""The process that parses one file: reads it from standard input, writes JSON to standard output, ends.

It bounds itself before it looks at the first byte: memory, processor time, files (none may be written), and
neither the network nor another program is to be had. Its argument says who waits, the type and the limits.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from km_registry.processes import die_with_parent
from server.intake.limits import IntakeLimits
from server.intake.media import Media
from server.intake.refusal import Reason, RefusedFileError

_OPEN_FILES = 64
_FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "ctypes.")


def main() -> None:
    """Parse what comes in; say its text, or why there is none."""
    told = json.loads(sys.argv[1])
    die_with_parent(told["parent"])
    limits = IntakeLimits(**told["limits"])
    _bound_ourselves(limits)
    data = sys.stdin.buffer.read()
    sys.stdout.write(json.dumps(_answer(data, Media(told["media"]), limits)))


def _answer(data: bytes, media: Media, limits: IntakeLimits) -> dict[str, str]:
    from server.intake.parsers import text_of

    try:
        return {"text": text_of(data, media, limits)}
    except RefusedFileError as refusal:
        return {"refused": refusal.reason, "message": str(refusal)}
    except (MemoryError, RecursionError):
        return {
            "refused": Reason.TOO_COMPLEX,
            "message": f"Reading the file takes more than {limits.memory_bytes >> 20} MiB, or is nested too "
            "deep. Save it anew in a simpler form, as text for example.",
        }
    except Exception as error:  # noqa: BLE001  whatever a parser trips over means the same for who sent it
        return {
            "refused": Reason.DAMAGED,
            "message": f"The file cannot be read as {media.upper()} ({type(error).__name__}): it seems to be "
            "damaged. Open it, save it anew and send that.",
        }


def _bound_ourselves(limits: IntakeLimits) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        resource.setrlimit(kind, (most, most))
    sys.addaudithook(_refuse_the_outside)


def _refuse_the_outside(event: str, _arguments: tuple[Any, ...]) -> None:
    if event.startswith(_FORBIDDEN):
        raise PermissionError(f"{event} is not for a parser")


if __name__ == "__main__":
    main()
