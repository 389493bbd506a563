"""`km serve`: starts every part of the server on this machine, keeps it running and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

import structlog
from rich.console import Console
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from km_registry import base_model
from km_registry.base_model import BaseModel
from km_registry.tracing import Tracing
from server import composition, logs
from server import ready_file as ready_files
from server.composition import Records
from server.config import ServerSettings
from server.engine.base import Engine
from server.http_server import HttpServer
from server.keepers import keep_redis, keepers_of
from server.redis_private import PrivateRedis, check
from server.stages import Stages
from server.startup import ServeError, StoppedError, data_directory, listen, url_of
from server.tokenizer import Tokenizer
from server.worker_process import WorkerProcess, descendants, end_at_once, kill

if TYPE_CHECKING:
    from server.retrieval.retriever import Retriever
    from server.state import AppState

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

#: Everything has ended within this many seconds of the first signal, or is killed.
STOP_WITHIN_S = 9.0
_ENGINE_GRACE_S = 3.0


def serve(settings: ServerSettings, *, ready_file: Path | None = None) -> None:
    """Run the server until SIGTERM or Ctrl-C.

    Once it is ready, `ready_file` holds {url, pid, admin_key?} as JSON, mode 0600, until it stops.

    Raises:
        KMError: it cannot start; the message is one line that says what to do.
        EngineUnavailableError: the engine does not start.
        StoppedError: it was told to stop before it was ready.
    """
    began = time.monotonic()
    os.umask(0o077)  # whatever we or our children write is this user's alone
    with (
        data_directory(settings.data_dir) as data_dir,
        closing(listen(settings.host, settings.port)) as listener,
        logs.diverted_output(data_dir / "logs" / "engine.log") as (out, err),
    ):
        if ready_file:
            ready_files.prepare(ready_file)
        logs.configure(data_dir / "logs", err)
        settings = settings.model_copy(update={"data_dir": data_dir})
        stages = Stages(Console(file=out))
        stages.done("data directory", str(data_dir), time.monotonic() - began)
        try:
            asyncio.run(Supervisor(settings, listener, stages, ready_file).run())
        finally:
            kill(descendants(os.getpid()))


@dataclass(slots=True)
class _Parts:
    """Everything that runs once the start is over."""

    records: Records
    worker: WorkerProcess
    http: HttpServer
    state: AppState


class Supervisor:
    """Starts the parts in order of need, watches them, stops them in reverse."""

    def __init__(
        self, settings: ServerSettings, listener: socket.socket, stages: Stages, ready_file: Path | None
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._stages = stages
        self._ready_file = ready_file
        self._url = url_of(listener)
        self._told = False  # read by threads and the signal handler; the event is the loop's
        self._stopping = asyncio.Event()
        self._redis: PrivateRedis | None = None

    async def run(self) -> None:
        """Start, serve until a signal, stop.

        Raises:
            StoppedError: the signal came before it was ready.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._signals())
            with self._stages.shown():
                parts = await self._unless_stopped(self._start(stack))
            await self._announce(parts.records, stack)
            await self._watch(parts)
            self._stages.line("Stopping.")
        self._stages.line("Stopped.")

    # --- starting ------------------------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack) -> _Parts:
        redis_url = self._start_redis(stack)
        try:
            async with asyncio.TaskGroup() as group:
                imports = group.create_task(asyncio.to_thread(composition.preload, self._settings))
                records_task = group.create_task(self._open_records(redis_url, stack))
                model = await self._resolve_model()
                await imports
                engine, tokenizer = await self._start_engine(model, stack)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        records = records_task.result()
        tracing = await asyncio.to_thread(Tracing.to, self._settings.otlp_endpoint, "km-gateway")
        stack.push_async_callback(asyncio.to_thread, tracing.close)
        state = composition.make_state(self._settings, records, model, engine, tokenizer, tracing)
        await self._join(state, records, stack)
        http = HttpServer(composition.make_app(state), self._listener)
        worker = self._make_worker(redis_url, model)
        stack.push_async_callback(_stop_front, http, worker)
        stack.callback(state.closing.set)
        with self._stages.stage("listening") as stage:
            await http.start()
            stage.detail = self._url
        self._start_retrieval(state.retriever, stack)
        with self._stages.stage("worker") as stage:
            await worker.start()
            stage.detail = f"process {worker.pid}" if worker.pid else "elsewhere"
        return _Parts(records, worker, http, state)

    def _start_redis(self, stack: AsyncExitStack) -> str:
        """The URL of the Redis to use; a private one is started, not yet waited for."""
        if self._settings.redis_url:
            return self._settings.redis_url
        self._redis = PrivateRedis(self._settings.data_dir)
        self._redis.start()
        stack.push_async_callback(asyncio.to_thread, self._redis.stop)
        return self._redis.url

    async def _open_records(self, redis_url: str, stack: AsyncExitStack) -> Records:
        with self._stages.stage("Redis") as stage:
            if self._redis:
                await asyncio.to_thread(self._redis.wait_ready)
            else:
                await asyncio.to_thread(check, redis_url)
            stage.detail = "private" if self._redis else "given"
        with self._stages.stage("database") as stage:
            try:
                records = await asyncio.to_thread(composition.open_records, self._settings, redis_url)
            except SQLAlchemyError as error:
                reason = str(error).splitlines()[0]
                raise ServeError(
                    f"The database cannot be opened: {reason}. Correct KM_DATABASE_URL."
                ) from error
            stack.push_async_callback(records.close)
            stage.detail = make_url(self._settings.effective_database_url).get_backend_name()
        return records

    async def _resolve_model(self) -> BaseModel:
        with self._stages.stage("base model") as stage:

            def report(text: str) -> None:
                if self._told:
                    raise StoppedError
                stage.update(text)

            model = await asyncio.to_thread(
                base_model.resolve, self._settings.base_model, self._settings.data_dir, report
            )
            stage.detail = model.name
        return model

    async def _start_engine(self, model: BaseModel, stack: AsyncExitStack) -> tuple[Engine, Tokenizer]:
        with self._stages.stage("engine") as stage:
            tokenizer = await asyncio.to_thread(composition.load_tokenizer, model)
            engine = composition.make_engine(self._settings, model, tokenizer)
            stack.push_async_callback(self._close_engine, engine)
            await engine.start()
            stage.detail = self._settings.engine
        return engine, tokenizer

    async def _join(self, state: AppState, records: Records, stack: AsyncExitStack) -> None:
        """Be counted among the gateways of the database before anything is served from it."""
        if records.registry.gateways.may_have_others:
            await state.fleet.join(records.home)
            stack.push_async_callback(state.fleet.leave)

    def _start_retrieval(self, retriever: Retriever, stack: AsyncExitStack) -> None:
        """Load the embedder in the background: what needs no passages is served meanwhile."""
        retriever.start()
        stack.push_async_callback(retriever.close)
        self._stages.line(f"  retrieval: {retriever.reason or 'the embedder is being loaded'}")

    def _make_worker(self, redis_url: str, model: BaseModel) -> WorkerProcess:
        return composition.make_worker(self._settings, redis_url=redis_url, server_url=self._url, model=model)

    async def _announce(self, records: Records, stack: AsyncExitStack) -> None:
        # Made last: a key made before a start that then fails would never be shown.
        admin_key = await asyncio.to_thread(records.registry.ensure_admin)
        if self._ready_file:
            ready_files.write(self._ready_file, url=self._url, admin_key=admin_key)
            stack.callback(self._ready_file.unlink, missing_ok=True)
        self._stages.line(f"\nKM Server is ready at {self._url}")
        if admin_key:
            self._stages.line(f"Admin API key, shown this once: {admin_key}\nPage: {self._url}/#{admin_key}")
        self._stages.line("Ctrl-C stops it.")

    # --- running -------------------------------------------------------------------------------------------

    async def _watch(self, parts: _Parts) -> None:
        """Keep every part running until the server is told to stop."""
        work = [parts.worker.run(), *keepers_of(parts.state)]
        if self._redis:
            work.append(keep_redis(self._redis))
        keepers = [asyncio.create_task(one) for one in work]
        for keeper in keepers:
            keeper.add_done_callback(_log_failure)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({stop, parts.http.serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stop, *keepers):
                task.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    # --- stopping ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM stops, a second one kills. Handlers of Python's own also run while
        the event loop is busy."""
        loop = asyncio.get_running_loop()

        def handle(number: int, _: FrameType | None) -> None:
            if self._told:
                end_at_once(128 + number)
            self._told = True
            loop.call_soon_threadsafe(self._stopping.set)
            deadline = threading.Timer(STOP_WITHIN_S, end_at_once, args=(1,))
            deadline.daemon = True
            deadline.start()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)
        yield

    async def _close_engine(self, engine: Engine) -> None:
        try:
            await asyncio.wait_for(engine.close(), _ENGINE_GRACE_S)
        except TimeoutError:
            _log.info("the engine did not close in time; its processes are killed")
            # The worker has gone before, so all but Redis is the engine's.
            redis_pid = self._redis.pid if self._redis else None
            kill([child for child in descendants(os.getpid()) if child.pid != redis_pid])

    async def _unless_stopped(self, work: Coroutine[None, None, _T]) -> _T:
        task, stop = asyncio.create_task(work), asyncio.create_task(self._stopping.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise StoppedError
        return task.result()


def _log_failure(keeper: asyncio.Task[None]) -> None:
    if not keeper.cancelled() and (error := keeper.exception()) is not None:
        _log.error("a part of the supervisor ended; restart the server", exc_info=error)


async def _stop_front(http: HttpServer, worker: WorkerProcess) -> None:
    await asyncio.gather(http.stop(), worker.stop())
