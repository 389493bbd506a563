"""The command `km`. What commands there are stands here; each is imported when it is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from server.cli_lazy import Listed, group_of

_DOCUMENTS, _ACCESS, _KES, _SERVER = "Documents", "Access", "Measuring and extracting", "The server"

#: In the order in which a person needs them. A test holds what they say here to what they say themselves.
COMMANDS = (
    Listed("add", "server.cli_add:add", "Upload documents; KMs are trained of them.", _DOCUMENTS),
    Listed("ls", "server.cli_documents:list_documents", "List your documents, newest first.", _DOCUMENTS),
    Listed("show", "server.cli_documents:show", "Show a document, its training, its KM.", _DOCUMENTS),
    Listed("watch", "server.cli_training:watch", "Follow a document's training.", _DOCUMENTS),
    Listed("ask", "server.cli_ask:ask", "Ask a document.", _DOCUMENTS),
    Listed("update", "server.cli_training:update", "Give a document a new version.", _DOCUMENTS),
    Listed("train", "server.cli_training:train", "Train a document again.", _DOCUMENTS),
    Listed("export", "server.cli_transfer:export", "Write a document's KM into a directory.", _DOCUMENTS),
    Listed("import", "server.cli_transfer:import_km", "Take in a KM from another server.", _DOCUMENTS),
    Listed("cancel", "server.cli_training:cancel", "End a document's training.", _DOCUMENTS),
    Listed("rm", "server.cli_documents:remove", "Delete a document; prints the receipt.", _DOCUMENTS),
    Listed("share", "server.cli_sharing:share", "Share a document, or list with whom it is.", _ACCESS),
    Listed("unshare", "server.cli_sharing:unshare", "Share a document no longer.", _ACCESS),
    Listed("whoami", "server.cli_access:whoami", "Show the user behind KM_API_KEY.", _ACCESS),
    Listed("users", "server.cli_access:users", "List users; `add`, `rm`. For administrators.", _ACCESS),
    Listed("groups", "server.cli_access:groups", "List groups; `add`, `rm`, `join`, …", _ACCESS),
    Listed("keys", "server.cli_access:keys", "List API keys; `add`, `revoke`.", _ACCESS),
    Listed("audit", "server.cli_access:audit", "Show who did or tried what.", _ACCESS),
    Listed("ke", "server.cli_kes:app", "Knowledge Extractors: list, register, delete.", _KES),
    Listed("eval", "server.evaluation.command:evaluate", "Measure KMs on your own questions.", _KES),
    Listed("train-ke", "server.ke_training.command:train_ke", "Train a Knowledge Extractor.", _KES),
    Listed("serve", "server.cli_server:serve", "Start everything on this machine.", _SERVER),
    Listed("worker", "server.cli_server:worker", "Run one more worker.", _SERVER),
    Listed("engine", "server.cli_engine:app", "Engine replicas on Ray: show, roll out.", _SERVER),
    Listed("config", "server.cli_config:config", "Show the settings, and where each comes from.", _SERVER),
    Listed("plan", "server.planning.command:plan", "Size a deployment for a workload.", _SERVER),
    Listed("doctor", "server.cli_operation:doctor", "Examine every record and file.", _SERVER),
    Listed("backup", "server.cli_operation:backup", "Copy records, texts and KMs.", _SERVER),
    Listed("restore", "server.cli_operation:restore", "Put a backup back.", _SERVER),
    Listed("demo", "server.cli_server:demo", "Show the main job once, with a sample.", _SERVER),
    Listed("version", "server.cli_server:version", "Print the version.", _SERVER),
)

app = typer.Typer(
    name="km",
    cls=group_of(COMMANDS),
    help="Online inference server with hot-swappable knowledge: documents become small, removable modules.",
    epilog="Talks to the server at KM_URL (http://127.0.0.1:8321) with the key KM_API_KEY. Exit codes: "
    "0 done; 1 refused or failed; 2 wrong usage or settings; 3 no server there.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _settings(
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with settings (KM_CONFIG).", dir_okay=False)
    ] = None,
) -> None:
    if config is not None:
        # Where this process and all that it starts look for it.
        os.environ["KM_CONFIG"] = str(config.absolute())


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SystemExit as end:
        if "vllm" in sys.modules and isinstance(end.code, int):
            # All that needs an orderly end has had it; what vLLM does while Python is being taken down
            # prints tracebacks and may hang.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise
