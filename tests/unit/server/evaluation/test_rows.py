"""The registry of rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from km_registry.recipe import RecipeLimits, parse_recipe
from server.evaluation import rows
from server.evaluation.rows import RowsError, plan
from server.modes import Mode


def test_every_built_in_recipe_is_one() -> None:
    found = plan(list(rows.BUILT_IN), {})
    recipes = {row.name: parse_recipe(row.recipe or {}, RecipeLimits(rank=16)) for row in found.training}
    assert recipes["lm"].objective == "lm"
    assert recipes["pit"].objective == "pit"
    assert recipes["ddcd"].objective == "ddcd"
    assert {name: set(recipe.mixture) for name, recipe in recipes.items() if name.startswith("sdcd-")} == {
        f"sdcd-{kind}": {kind} for kind in ("summary", "qa", "entigraph", "repeat", "recall")
    }
    assert recipes["sdcd"] == parse_recipe({}, RecipeLimits(rank=16))


def test_the_recipe_is_merged_into_training_rows_only() -> None:
    found = plan(["base", "lm", "sdcd"], {"steps": 5})
    assert [row.recipe for row in found.rows] == [None, {"objective": "lm", "steps": 5}, {"steps": 5}]
    assert [row.name for row in found.training] == ["lm", "sdcd"]


def test_rows_keep_the_order_they_are_named_in() -> None:
    assert [row.name for row in plan(["sdcd", "base"], {}).rows] == ["sdcd", "base"]


def test_wrong_asks_the_main_rows_kms() -> None:
    wrong = plan(["sdcd", "wrong"], {}).row("wrong")
    assert (wrong.mode, wrong.source, wrong.wrong, wrong.recipe) == ("km", "sdcd", True, None)


def test_passages_by_name() -> None:
    found = plan(["lm", "sdcd", "rag-4", "lm+rag-2", "km+rag-8"], {})
    assert [(row.mode, row.source, row.k) for row in found.rows[2:]] == [
        ("rag", None, 4),
        ("km+rag", "lm", 2),
        ("km+rag", "sdcd", 8),
    ]


def test_a_ke_by_name() -> None:
    names = ["lm", "sdcd", "lm+ke", "sdcd+rag-2+ke", "rag-2+ke:alone", "base+ke", "wrong+ke:alone"]

    found = {row.name: row for row in plan(names, {"steps": 5}).rows}

    assert found["lm"].ke is None
    assert [(found[name].km, found[name].mode, found[name].k, found[name].ke) for name in names[2:]] == [
        ("lm", Mode.KM, None, "default"),
        ("sdcd", Mode.KM_RAG, 2, "default"),
        (None, Mode.RAG, 2, "alone"),
        (None, Mode.BASE, None, "default"),
        ("sdcd", Mode.KM, None, "alone"),
    ]
    assert found["wrong+ke:alone"].wrong
    assert all(found[name].recipe is None for name in names[2:])


def test_pairs_are_those_of_rows_that_are_there() -> None:
    assert plan(["base", "sdcd", "wrong"], {}).pairs == (
        ("sdcd", "base"),
        ("wrong", "base"),
        ("sdcd", "wrong"),
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wrong"], "The row wrong is answered by the KMs of sdcd.*Add sdcd"),
        (["sdcd", "lm+rag-2"], "KMs of lm"),
        (["sdcd", "icl+rag-2"], "KMs of icl"),
        (["sdcc"], "no row 'sdcc'. There are base, icl, lm"),
        (["rag-0"], "no row 'rag-0'"),
        (["rag-0+ke"], "no row 'rag-0\\+ke'"),
        (["base+ke+ke"], "no row 'base\\+ke\\+ke'"),
        (["sdcd+ke"], "KMs of sdcd"),
        (["base", "base"], "'base' is named twice"),
        (["../x"], "is no name"),
        ([], "No rows are named"),
    ],
)
def test_what_cannot_be_planned(names: list[str], message: str) -> None:
    with pytest.raises(RowsError, match=message):
        plan(names, {})


def test_a_toml_file_defines_and_changes_rows_and_pairs(tmp_path: Path) -> None:
    file = tmp_path / "rows.toml"
    file.write_text(
        'pairs = [["long", "lm"]]\n[rows.long]\nrecipe = {steps = 900}\n[rows.lm]\nabout = "changed"\n',
        encoding="utf-8",
    )
    found = plan(["long", "lm"], {"seed": 3}, file)
    assert found.row("long").recipe == {"steps": 900, "seed": 3}
    assert found.row("lm").about == "changed"
    assert found.row("lm").recipe == {"objective": "lm", "seed": 3}
    assert found.pairs == (("long", "lm"),)


def test_a_file_may_name_a_ke(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"rows": {"sdcd+ke": {"km": "sdcd", "ke": "default"}}}), encoding="utf-8")
    assert plan(["sdcd", "sdcd+ke"], {}, file).row("sdcd+ke").ke == "default"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"rows": {"x": {"mode": "km"}}}', "row x .* needs a recipe, or `km`"),
        ('{"rows": {"x": {"mode": "icl", "recipe": {}}}}', "row x .* a recipe belongs"),
        ('{"rows": {"x": {"mode": "rag"}}}', "row x .* k belongs"),
        ('{"rows": {"x": {"mode": "km", "recipe": {}, "k": 2}}}', "row x .* k belongs"),
        ('{"rows": {"x": {"colour": 1}}}', "row x .* colour"),
        ('{"row": {}}', "row: Extra inputs"),
        ("{", "cannot be read as TOML or JSON"),
    ],
)
def test_a_file_that_defines_no_rows(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RowsError, match=message):
        plan(["x"], {}, file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="cannot be read"):
        plan(["base"], {}, tmp_path / "none.toml")
