"""The facade: the surface that other packages are written against. The contract tests show what it does."""

from __future__ import annotations

import subprocess
import sys

from km_registry.registry import Registry

PUBLIC = """
add_document all_kms_of authenticate beat cancel cancelled claim clock_ahead_s close
complete_deletion counts create_user document_of end_run ensure_admin events_after fail
forget_copies get_document hand_over handed_over has_shared_store held_km held_passages job job_of
job_recipe jobs_held jobs_of km_manifest km_of kms_after kms_of let_go list_documents open
passages_dir pending_deletions pending_replacements previous_km prioritise progress publish purge
purge_superseded put_off queued_jobs read_text receipt recover release retrain run_of share_passages
superseded sweep sweep_store tombstone training_measures trainings unfinished_jobs update_document
versions_of waiting_by_queue work_dir
"""


def test_the_public_surface() -> None:
    assert [name for name in sorted(vars(Registry)) if not name.startswith("_")] == PUBLIC.split()


def test_it_is_imported_without_anything_heavy() -> None:
    code = (
        "import sys, km_registry.registry, km_registry.jobs, km_registry.chunking\n"
        "print({'torch', 'transformers', 'vllm', 'langchain_text_splitters'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
