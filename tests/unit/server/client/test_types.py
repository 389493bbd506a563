"""The client's types say what the server's schemas say."""

from __future__ import annotations

import typing

import pytest
from pydantic import BaseModel

from server import schemas, schemas_access, schemas_answer, schemas_kes, schemas_recipes
from server.client import types

SAME = {
    types.Document: schemas.DocumentOut,
    types.ListedDocument: schemas.DocumentListed,
    types.DocumentPage: schemas.DocumentList,
    types.Version: schemas.VersionOut,
    types.Job: schemas.JobOut,
    types.KnowledgeModule: schemas.KMOut,
    types.DocumentAndJob: schemas.DocumentAndJob,
    types.DocumentDetail: schemas.DocumentDetail,
    types.JobStarted: schemas.JobStarted,
    types.Receipt: schemas.ReceiptOut,
    types.Removal: schemas.RemovalOut,
    types.User: schemas.UserOut,
    types.UserCreated: schemas.UserCreated,
    types.Answer: schemas_answer.AnswerOut,
    types.Passage: schemas_answer.PassageOut,
    types.Recipes: schemas_recipes.RecipesOut,
    types.Preset: schemas_recipes.PresetOut,
    types.Limits: schemas_recipes.LimitsOut,
    types.KnowledgeExtractor: schemas_kes.KEOut,
    types.KERegistered: schemas_kes.KERegistered,
    types.KEDeleted: schemas_kes.KEDeleted,
    types.Grant: schemas_access.GrantOut,
    types.Group: schemas_access.GroupOut,
    types.Me: schemas_access.Me,
    types.Key: schemas_access.KeyOut,
    types.KeyCreated: schemas_access.KeyCreated,
    types.AuditEntry: schemas_access.AuditOut,
    types.AuditPage: schemas_access.AuditList,
}


@pytest.mark.parametrize(("typed", "schema"), SAME.items(), ids=lambda one: one.__name__)
def test_a_type_has_only_what_the_schema_has(typed: type, schema: type[BaseModel]) -> None:
    hints = typing.get_type_hints(typed)
    assert set(hints) <= set(schema.model_fields)
    for name in hints:
        nullable = type(None) in typing.get_args(schema.model_fields[name].annotation)
        assert (type(None) in typing.get_args(hints[name])) == nullable, name


def test_every_type_is_held_to_one() -> None:
    own = {one for one in vars(types).values() if typing.is_typeddict(one)}
    assert own == set(SAME)
