# make demo and make test each set everything up by themselves; see deploy/setup.sh.
.DEFAULT_GOAL := help
PY := .venv/bin/python

.PHONY: help setup setup-tests demo serve test test-faults lint format docs bench bench-compose bench-reliability bench-retrieval bench-scale bench-serve bench-train

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

setup:
	@deploy/setup.sh

demo: setup  ## the main job on a sample document: upload, train, ask, delete
	@.venv/bin/km demo

serve: setup  ## the server on this machine (http://127.0.0.1:8321)
	@.venv/bin/km serve

setup-tests:
	@deploy/setup.sh --for-tests

test: setup-tests  ## every test, on real parts
	@$(PY) -m pytest

test-faults: setup  ## kill -9 of every process in every phase, a full disk at every write (some 15 minutes)
	@$(PY) -m pytest tests/faults

lint: setup  ## ruff, mypy, import arrows
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -c 'from importlinter.cli import lint_imports_command as run; run()'

format: setup  ## let ruff format and mend
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs: setup  ## the references of the API and of the settings, made of their definitions
	@$(PY) -m server.api_reference > docs/api.md
	@KM_CONFIG=/dev/null .venv/bin/km config --reference > docs/settings.md

bench: setup  ## measure the demo; the last result is kept in benchmarks/results
	@$(PY) -m benchmarks.demo

bench-compose: setup  ## what a composite of KM and KE costs to make and to serve, and how exact it is
	@$(PY) -m benchmarks.compose

bench-retrieval: setup  ## how long an index takes, and what passages add to an answer
	@$(PY) -m benchmarks.retrieval

bench-serve: setup  ## what KMs cost in time and memory, over HTTP, and against the document in the prompt
	@$(PY) -m benchmarks.serve

bench-scale: setup  ## replicas on Ray Serve, their routing and failing over, 100,000 documents' records
	@$(PY) -m benchmarks.scale

bench-train: setup  ## training against the straightforward reference: seconds, loss, share of the matmul ceiling
	@$(PY) -m benchmarks.train

bench-reliability: setup  ## kills, full disks, bad files, fuzzed requests, access, load (some 30 minutes)
	@$(PY) -m benchmarks.reliability
