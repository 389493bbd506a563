"""The command `km train-ke`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from km_registry.ke_recipe import KERecipe
from server.cli_shared import Json, PresetOption, fail, json_fields, recipe_fields, settings_of
from server.evaluation.command import Layout

if TYPE_CHECKING:
    from server.evaluation.run import Evaluation


def train_ke(
    data: Annotated[Path, typer.Option(help="File or folder with documents and questions.")],
    layout: Annotated[Layout, typer.Option("--format", help="How the data are laid out.")] = Layout.JSONL,
    documents: Annotated[int | None, typer.Option(min=2, help="Documents to draw; all of them else.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw, and of the KE.")] = 0,
    ke: Annotated[
        str | None, typer.Option(help='JSON that changes how the KE is trained, like {"steps": 300}.')
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help='JSON of the documents\' KMs, like {"steps": 60}.')
    ] = None,
    preset: PresetOption = None,
    row: Annotated[
        str, typer.Option(help="How the documents' KMs are trained: a training row of `km eval`.")
    ] = "sdcd",
    split: Annotated[str, typer.Option(help="Part of data that are in parts: train, val, test.")] = "train",
    min_questions: Annotated[int, typer.Option(min=1, help="Fewest questions of a document.")] = 1,
    max_questions: Annotated[int | None, typer.Option(min=1, help="Most; drawn where it has more.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest document, in tokens.")] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="Passages of a question; the server's number else.")
    ] = None,
    about: Annotated[str, typer.Option(help="What the card says of the data.")] = "not said",
    licence: Annotated[str, typer.Option(help="The KE's, by its SPDX identifier.")] = "other",
    base_model: Annotated[
        str | None, typer.Option(help="The model it is for (KM_BASE_MODEL; embedded).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the KE; the format's else.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to work; KM_DATA_DIR/train-ke/NAME else.", file_okay=False)
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Train again the KMs that have failed.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs have done.")] = False,
    as_json: Json = False,
) -> None:
    """Train a Knowledge Extractor.

    How to answer, learned beside the KMs of many documents.

    Trains the documents' KMs on a server of its own, then the KE on their questions, with and without
    passages. Stopped, it goes on where it was when it is called again.
    """
    settings = settings_of(base_model=base_model)
    kms = recipe_fields(recipe, preset)
    wanted = _ke_recipe(ke, seed)
    called = name or layout.value
    from server.evaluation.run import Evaluation
    from server.ke_training.run import KERequest, main

    gathered = Evaluation(
        data=data,
        layout=layout.value,
        rows=[row],
        out=out or settings.data_dir / "train-ke" / called,
        name=called,
        recipe=kms,
        split=split,
        documents=documents,
        min_questions=min_questions,
        max_questions=max_questions,
        max_tokens=max_tokens,
        seed=seed,
        base_model=settings.base_model,
        data_dir=settings.data_dir,
        retry=retry,
        fresh=fresh,
        as_json=as_json,
    )
    # Sent by `timeout` and service managers: it ends as orderly as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    said = {"data": about, "licence": licence, "command": _command(gathered, wanted, row)}
    raise typer.Exit(main(KERequest(gathered, wanted, k, said)))


def _ke_recipe(given: str | None, seed: int) -> KERecipe:
    try:
        return KERecipe.model_validate({"seed": seed, **json_fields("--ke", given)})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        fail(f"--ke, {'.'.join(map(str, problem['loc']))}: {problem['msg']}.")


def _command(gathered: Evaluation, wanted: KERecipe, row: str) -> str:
    """What makes the KE again, with the data by their name: paths differ between machines."""
    from server.evaluation.run import drawing_options

    changed = wanted.model_dump(mode="json", exclude_defaults=True)
    parts = [f"km train-ke --data {gathered.data.name} --format {gathered.layout} --split {gathered.split}"]
    parts += drawing_options(gathered)
    parts += [f"--seed {gathered.seed}", f"--row {row}"]
    parts += [f"--recipe '{json.dumps(gathered.recipe)}'"] if gathered.recipe else []
    parts += [f"--ke '{json.dumps(changed)}'"] if changed else []
    return " ".join([*parts, f"--name {gathered.name}"])
