"""Recipes: what cannot work is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from km_registry.errors import KMError
from trainer_worker.recipe import Recipe, RecipeError, parse_recipe


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stepz": 3}, "stepz"),
        ({"steps": 0}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"rank": 0}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"dropout": 1.0}, "dropout"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"kinds": ["qa", "poem"]}, "kinds.1"),
        ({"kinds": []}, "kinds"),
        ({"kl_weight": 0, "hidden_weight": 0}, "kl_weight and hidden_weight"),
        ({"hidden_reduction": "median"}, "hidden_reduction"),
        ({"heldout_share": 0.9}, "heldout_share"),
        ({"rank": 17}, "rank: 17 is above the 16"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError) as raised:
        parse_recipe(fields, rank=16)

    assert named in str(raised.value)
    assert "pydantic" not in str(raised.value)
    assert isinstance(raised.value, KMError)


def test_every_bad_field_is_named() -> None:
    with pytest.raises(RecipeError, match=r"steps.*clip|clip.*steps"):
        parse_recipe({"steps": -1, "clip": -1}, rank=16)


def test_the_rank_is_the_servers_unless_a_lower_one_is_asked_for() -> None:
    recipe = parse_recipe({}, rank=8)

    assert (recipe.rank, recipe.alpha) == (8, 8.0)
    assert parse_recipe({"rank": 4}, rank=8).rank == 4
    assert parse_recipe({"alpha": 3.0}, rank=8).alpha == 3.0


def test_an_empty_recipe_is_the_default_at_the_default_rank() -> None:
    default = Recipe()

    assert parse_recipe({}, rank=default.rank) == default
    assert parse_recipe(default.model_dump(mode="json"), rank=default.rank) == default


def test_steps_grow_with_the_document_and_end_at_the_papers() -> None:
    recipe = Recipe(steps=None)
    steps = [recipe.steps_for(tokens) for tokens in range(0, 60_000, 100)]

    assert steps == sorted(steps)
    assert steps[0] >= 1
    assert steps[5] < steps[20] < steps[50]
    assert recipe.steps_for(10**9) == 1500


def test_steps_that_are_asked_for_are_done() -> None:
    recipe = Recipe(steps=7)

    assert [recipe.steps_for(tokens) for tokens in (0, 600, 10**6)] == [7, 7, 7]
