"""A worker that starts makes sure that its database, its files and its store are of one installation."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import structlog

from km_registry.config import RegistrySettings
from km_registry.errors import StoreUnavailableError
from km_registry.registry import Registry

_log = structlog.get_logger(__name__)


def check_installation(settings: RegistrySettings) -> Registry:
    """The registry, closed again, its tables up to date. InstallationError says what to correct."""
    with Registry.open(settings) as registry:
        registry.installation.check_home()
    if registry.has_shared_store:
        # In a process of its own: the threads of the store's client would not survive a worker's forks.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            pool.submit(_check_store, settings).result()
    return registry


def _check_store(settings: RegistrySettings) -> None:
    with Registry.open(settings) as registry:
        try:
            registry.installation.check_store()
        except StoreUnavailableError as error:
            _log.warning("the store is away; whose it is was not looked at", reason=str(error))
