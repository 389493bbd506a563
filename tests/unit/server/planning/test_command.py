"""`km plan`: what it says, how it refuses, and that it loads no engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server import cli

LITTLE = """
[replica]
slots = 2
places = 4
tokens_per_s = { 1 = 10.0, 4 = 40.0 }
prompt_tokens_per_s = { 1 = 1000.0 }
[training]
seconds_per_token = 0.01
[prices]
replica_hour = 1.0
currency = "EUR"
"""
SMALL = ("--documents", "20", "--questions-per-s", "0.5", "--document-tokens", "500", "--answer-tokens", "10")


@pytest.fixture
def profile(tmp_path: Path) -> str:
    file = tmp_path / "ours.toml"
    file.write_text(LITTLE)
    return str(file)


def km_plan(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["plan", *arguments])


def test_a_table_for_people(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    done = km_plan(*SMALL, "--profile", profile, "--mix", "km=3, rag=1", "--uploads-per-day", "5")
    assert done.exit_code == 0, done.output
    head, asked, whole, passages, *_ = done.stdout.splitlines()
    assert head.split()[-1] == "EUR/million"
    assert asked.strip().startswith("as asked: km, rag")
    assert whole.strip().startswith("document in context")
    # One euro an hour, for 1800 answers.
    assert passages.split()[-1] == "555.56"
    assert "Trainers: 1, busy" in done.stdout
    assert "Measured times: ours." in done.stdout
    assert done.stderr == ""


def test_json_for_programs(profile: str) -> None:
    arguments = (
        *SMALL,
        "--profile",
        profile,
        "--slots",
        "3",
        "--replica-price",
        "2",
        "--seed",
        "7",
        "--json",
    )
    done, again = km_plan(*arguments), km_plan(*arguments)
    told = json.loads(done.stdout)
    assert done.stdout == again.stdout
    assert [way["name"] for way in told["ways"]] == ["km", "icl", "rag"]
    assert told["ways"][0]["fleet"]["outcome"]["hit_rate"] > 0
    assert told["profile"]["replica"]["slots"] == 3
    assert told["profile"]["prices"]["replica_hour"] == 2.0
    assert (told["workload"]["documents"], told["seed"]) == (20, 7)


def test_what_cannot_be_met_is_told_beside_what_can(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    fast = ("--first-token", "0.2", "--documents", "1000")
    done = km_plan(*SMALL, *fast, "--profile", profile)
    assert "Document in context: so many replicas keep up, but to read a prompt that is" in done.output
    done = km_plan(*SMALL, "--document-tokens", "5000", "--profile", profile)
    assert "Document in context: A prompt of 5032 tokens (mode icl)" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--documents", "0"), "The workload: documents: Input should be greater than or equal to 1"),
        (("--mix", "km=x"), "x is no number"),
        (("--mix", "km=1,km=2"), "stands there twice"),
        (("--mix", "kn"), "mix.kn"),
        (("--zipf", "nan"), "zipf"),
        (("--first-token", "0.01"), "No number of replicas"),
        (("--slots", "100"), "fewer than the 100 slots"),
        (("--trainer-price", "-1"), "prices.trainer_hour"),
        (("--profile", "none.toml"), "none.toml cannot be read"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = km_plan(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_no_engine_is_loaded() -> None:
    heavy = {"torch", "vllm", "fastapi", "ray", "sqlalchemy", "redis", "transformers", "numpy"}
    code = (
        "import sys, server.planning.command, server.planning.plan\n"
        f"print(*(name for name in {sorted(heavy)} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
