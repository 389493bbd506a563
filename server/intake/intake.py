"""Reading uploaded files: the type by their content, the text by a child that is ended when it takes too
much."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import asdict

import structlog

from server.intake.limits import IntakeLimits
from server.intake.media import Media, media_of
from server.intake.refusal import Reason, RefusedFileError

_log = structlog.get_logger(__name__)

#: Children at once: parsing must leave processors to the engine.
_AT_ONCE = 2
#: A character of the text may be six bytes of JSON, and what is around it is short.
_JSON_EXPANSION = 6
_ENVELOPE_BYTES = 64 * 1024
#: Longest wait, in processor seconds of the child: others may have the processor.
_PATIENCE = 3


class Intake:
    """Turns files into text. For one event loop."""

    def __init__(self, limits: IntakeLimits) -> None:
        self.limits = limits
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def text_of(self, data: bytes) -> str | None:
        """The file's text; None when the file is plain text, which needs no reading but UTF-8.

        RefusedFileError says why there is none. Nothing of the file is written anywhere.
        """
        media = media_of(data)
        if media is Media.TEXT:
            return None
        async with self._turns:
            return await self._parsed(data, media)

    async def _parsed(self, data: bytes, media: Media) -> str:
        told = {"parent": os.getpid(), "media": media, "limits": asdict(self.limits)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "server.intake.child", json.dumps(told)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,  # it could quote the file
            env={"LC_ALL": "C.UTF-8"},  # ours holds keys
        )
        try:
            async with asyncio.timeout(self.limits.seconds * _PATIENCE):
                said = await self._conversation(process, data)
        except TimeoutError:
            raise self._too_long() from None
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        return self._understood(said, process.returncode or 0, media)

    async def _conversation(self, process: Process, data: bytes) -> bytes:
        """Hand the file over and hear the child out, but no longer than an answer can be."""
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        most = self.limits.text_bytes * _JSON_EXPANSION + _ENVELOPE_BYTES
        telling = asyncio.create_task(_tell(process.stdin, data))
        said = bytearray()
        try:
            while (piece := await process.stdout.read(1 << 16)) and len(said) <= most:
                said += piece
            if len(said) > most:
                process.kill()
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        await process.wait()
        return bytes(said)

    def _understood(self, said: bytes, code: int, media: Media) -> str:
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            raise self._too_long()
        try:
            answer = json.loads(said)
        except ValueError:
            # It died of the file without a word, as code in C does that gets no memory.
            _log.warning("a parser died", media=media, code=code)
            memory = f"{self.limits.memory_bytes >> 20} MiB"
            raise RefusedFileError(
                Reason.TOO_COMPLEX,
                f"The file cannot be read as {media.upper()} within {memory}: it is too complex, or damaged. "
                "Open it and save it anew, in a simpler form or in parts.",
            ) from None
        if "refused" in answer:
            raise RefusedFileError(Reason(answer["refused"]), answer["message"])
        text: str = answer["text"]
        return text

    def _too_long(self) -> RefusedFileError:
        return RefusedFileError(
            Reason.TOO_COMPLEX,
            f"Reading the file takes longer than {self.limits.seconds} s. Save it anew in a simpler form, "
            "send it in parts, or have KM_INTAKE_SECONDS raised.",
        )


async def _tell(pipe: asyncio.StreamWriter, data: bytes) -> None:
    # One that ends before it has read everything has said why.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError), contextlib.closing(pipe):
        pipe.write(data)
        await pipe.drain()
