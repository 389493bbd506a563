"""What a worker is told of its server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from km_registry.base_model import BaseModel
from km_registry.config import GeneratorEndpoint
from km_registry.types import Principal
from server.composition import make_worker, open_records, worker_environment
from server.config import ServerSettings
from server.startup import ServeError
from server.worker_process import WorkerElsewhere, WorkerProcess
from trainer_worker.config import TrainerSettings


def test_a_worker_knows_the_servers_generators_and_their_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fields = {"url": "http://host/v1", "model": "m", "key": "sk", "api": "chat"}
    big = GeneratorEndpoint.model_validate(fields)
    settings = ServerSettings(data_dir=tmp_path, generators={"big": big})
    model = BaseModel(tmp_path, "test", "f" * 64)
    environment = worker_environment(settings, redis_url="redis://r", server_url="http://s", model=model)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert TrainerSettings().generators == {"big": big}


def test_a_worker_knows_how_many_documents_it_may_train_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = ServerSettings(data_dir=tmp_path, train_concurrency=7, crash_retries=5)
    model = BaseModel(tmp_path, "test", "f" * 64)
    environment = worker_environment(settings, redis_url="redis://r", server_url="http://s", model=model)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told = TrainerSettings()
    assert (told.train_concurrency, told.crash_retries) == (7, 5)


async def test_records_without_their_files_are_not_served(
    tmp_path: Path, redis_socket: Path, migrated: Path
) -> None:
    shutil.copy(migrated, tmp_path / "records.sqlite3")
    url = f"sqlite:///{tmp_path / 'records.sqlite3'}"
    redis_url = f"unix://{redis_socket}"
    records = open_records(ServerSettings(data_dir=tmp_path / "a", database_url=url), redis_url)
    assert records.home.startswith("dir_")
    ada = Principal(records.registry.create_user("Ada")[0].id)
    records.registry.add_document(ada, "Harbour", "It opens at six.")
    with pytest.raises(ServeError, match="KM_STORE_URL"):
        open_records(ServerSettings(data_dir=tmp_path / "b", database_url=url), redis_url)
    await records.close()


@pytest.mark.parametrize(("local", "kind"), [(True, WorkerProcess), (False, WorkerElsewhere)])
def test_trainings_may_be_elsewhere(tmp_path: Path, local: bool, kind: type[WorkerProcess]) -> None:
    settings = ServerSettings(data_dir=tmp_path, local_worker=local)
    model = BaseModel(tmp_path, "test", "f" * 64)
    made = make_worker(settings, redis_url="redis://r", server_url="http://s", model=model)
    assert type(made) is kind
