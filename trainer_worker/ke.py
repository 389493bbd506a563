"""`python -m trainer_worker.ke`: train one KE and write its directory. `km train-ke` gathers and calls it.

Says how far it is in lines of JSON on its standard output; stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from km_registry.errors import KMError
from km_registry.ke_recipe import KEDataError, KEDocument, KERecipe, read_documents
from trainer_worker.config import TrainerSettings

#: Exit codes: what was asked for cannot work; it was stopped and may be called again.
REFUSED, STOPPED = 2, 130


@dataclass(frozen=True, slots=True)
class Asked:
    """What `km train-ke` asks for. `about`: what card and manifest say of the data."""

    documents: tuple[KEDocument, ...]
    recipe: KERecipe
    name: str
    out: Path
    about: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, export; 0 when the KE's directory is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=Path, required=True, help="JSONL of km_registry.ke_recipe")
    parser.add_argument("--recipe", default="{}", help="JSON of a KERecipe")
    parser.add_argument("--name", required=True)
    parser.add_argument("--about", default="{}", help="JSON: data, licence, command, for the card")
    parser.add_argument(
        "--out", type=Path, required=True, help="the KE's directory; its checkpoint beside it"
    )
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        settings = TrainerSettings()
        recipe = KERecipe.model_validate_json(given.recipe)
        asked = Asked(read_documents(given.documents), recipe, given.name, given.out, json.loads(given.about))
        train_ke(settings, asked)
    except (KMError, ValidationError) as error:
        sys.stderr.write(f"km train-ke: {error}\n")
        return REFUSED
    except KeyboardInterrupt:
        return STOPPED
    return 0


def split(documents: Sequence[KEDocument], recipe: KERecipe) -> tuple[list[KEDocument], list[KEDocument]]:
    """What is trained on and what is only looked at: the last documents.

    Raises:
        KEDataError: none would be left to train on, or one has no KM beside which to train.
    """
    if len(documents) <= recipe.heldout_documents:
        raise KEDataError(
            f"There are {len(documents)} documents, and {recipe.heldout_documents} of them are held out. "
            "Give more documents, or lower heldout_documents."
        )
    if recipe.trained == "km+ke" and (without := [one.id for one in documents if one.km is None]):
        raise KEDataError(
            f"{len(without)} documents have no KM, {without[0]} first. Train them, leave them out, or train "
            'the KE alone: "trained": "ke".'
        )
    at = len(documents) - recipe.heldout_documents
    return list(documents[:at]), list(documents[at:])


def train_ke(settings: TrainerSettings, asked: Asked) -> dict[str, Any]:
    """Train the KE and write its directory, which must not be there yet; its manifest.

    Raises:
        KMError: documents, KMs or base model are not what they should be, or the loss is not finite.
    """
    # Costs seconds to import, which a refusal should not take.
    from trainer_worker.answers import Answers
    from trainer_worker.extractor import KETraining
    from trainer_worker.frozen import FrozenKMs
    from trainer_worker.ke_export import export_ke
    from trainer_worker.publication import peak_rss_bytes
    from trainer_worker.resident import Resident

    fit, heldout = split(asked.documents, asked.recipe)
    if asked.out.exists():
        raise KEDataError(f"{asked.out} is there already. Take another name, or remove it.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    checkpoint = asked.out.with_name(f"{asked.out.name}.checkpoint")
    resident = Resident.open(settings)
    model = resident.load_model()
    training = KETraining(
        model,
        asked.recipe,
        Answers(fit, resident.tokenizer, asked.recipe),
        Answers(heldout, resident.tokenizer, asked.recipe),
        FrozenKMs(model, resident.base).of,
        directory=checkpoint,
        context=f"{resident.context} {asked.recipe.model_dump_json()} {hash_of(asked.documents)}",
        on_step=lambda step, loss: _say("step", step=step, of=asked.recipe.steps, loss=round(loss, 4)),
        on_look=lambda look: _say("look", **asdict(look)),
    )
    began = time.monotonic()
    best = training.run()
    metrics = {
        "best": asdict(best),
        "looks": [asdict(look) for look in training.looks],
        "steps": training.step,
        "documents": len(fit),
        "heldout_documents": len(heldout),
        "questions": sum(len(one.questions) for one in fit),
        "seconds_of_this_run": round(time.monotonic() - began, 1),
        "peak_rss_gb": round(peak_rss_bytes() / 2**30, 2),
    }
    manifest = export_ke(
        training, asked.out, resident=resident, name=asked.name, metrics=metrics, about=asked.about
    )
    shutil.rmtree(checkpoint, ignore_errors=True)
    _say("done", directory=str(asked.out), best=asdict(best))
    return manifest


def hash_of(documents: Sequence[KEDocument]) -> str:
    """What stands for the documents in a checkpoint: KMs by their directory's name, which is their digest."""
    content = [
        one.model_copy(update={"km": Path(one.km).name if one.km else None}).model_dump_json()
        for one in documents
    ]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def _say(kind: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": kind, **fields}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
