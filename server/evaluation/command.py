"""The command `km eval`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from server.cli_shared import Json, PresetOption, fail, recipe_fields, settings_of


class Layout(StrEnum):
    """Layouts of data that there is a reader for."""

    JSONL = "jsonl"
    FAIRYTALEQA = "fairytaleqa"
    QUALITY = "quality"
    NARRATIVEQA = "narrativeqa"
    NARRATIVEQA_SUMMARIES = "narrativeqa-summaries"
    LONGHEALTH = "longhealth"
    POLICYQA = "policyqa"


def evaluate(
    data: Annotated[Path, typer.Option(help="File or folder with documents and questions.")],
    layout: Annotated[Layout, typer.Option("--format", help="How the data are laid out.")] = Layout.JSONL,
    rows: Annotated[
        str, typer.Option(help="What to compare; an unknown name lists what there is.")
    ] = "base,icl,lm,ddcd,sdcd,wrong",
    documents: Annotated[int | None, typer.Option(min=1, help="Documents to draw; all of them else.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw: documents, controls, bootstrap.")] = 0,
    recipe: Annotated[
        str | None, typer.Option(help='JSON that is merged into every row\'s recipe, like {"steps": 60}.')
    ] = None,
    preset: PresetOption = None,
    definitions: Annotated[Path | None, typer.Option(help="TOML or JSON file with rows and pairs.")] = None,
    ke: Annotated[
        list[Path] | None,
        typer.Option(help="A KE's directory to register, for rows like sdcd+ke:NAME; may be repeated."),
    ] = None,
    split: Annotated[str, typer.Option(help="Part of data that are in parts: train, val, test.")] = "val",
    min_questions: Annotated[int, typer.Option(min=1, help="Fewest questions of a document.")] = 1,
    max_questions: Annotated[int | None, typer.Option(min=1, help="Most; drawn where it has more.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest document; FairytaleQA is cut at 800 tokens anyway.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="URL of a running server; one of its own else.", envvar="KM_EVAL_SERVER"),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Administrator's key for --server.", envvar="KM_API_KEY")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The model that is served (KM_BASE_MODEL; embedded).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the evaluation; the format's else.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to keep it; KM_DATA_DIR/eval/NAME else.", file_okay=False)
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the figures here too, as JSON.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what has failed.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs have done.")] = False,
    as_json: Json = False,
) -> None:
    """Measure KMs on your own questions.

    Against other ways to know a document: train, ask, score; a table, a report, a plot.

    Stopped, it goes on where it was when it is called again; rows may be added later. Without --server it
    starts a server of its own. The last line is the figures as JSON, and with --json the only one.
    """
    settings = settings_of(base_model=base_model)
    fields = recipe_fields(recipe, preset)
    if server and not key:
        fail("--server needs an administrator's key: --key or KM_API_KEY.")
    called = name or layout.value
    from server.evaluation.run import Evaluation, main

    evaluation = Evaluation(
        data=data,
        layout=layout.value,
        rows=[row.strip() for row in rows.split(",") if row.strip()],
        out=out or settings.data_dir / "eval" / called,
        name=called,
        recipe=fields,
        definitions=definitions,
        split=split,
        documents=documents,
        min_questions=min_questions,
        max_questions=max_questions,
        max_tokens=max_tokens,
        seed=seed,
        server=server,
        key=key,
        base_model=settings.base_model,
        data_dir=settings.data_dir,
        retry=retry,
        fresh=fresh,
        save=save,
        kes=[directory.resolve() for directory in ke or ()],
        as_json=as_json,
    )
    # Sent by `timeout` and service managers: it ends as orderly as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise typer.Exit(main(evaluation))
