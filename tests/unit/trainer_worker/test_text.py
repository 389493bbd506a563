"""Sentences, phrases and content words, by hand."""

from __future__ import annotations

import pytest

from trainer_worker.text import content_words, phrases, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is here. Two is there! Is three? Yes", ["One is here.", "Two is there!", "Is three?", "Yes"]),
        ("It cost 3.5 florins. 4 were paid.", ["It cost 3.5 florins.", "4 were paid."]),
        ("a line\nanother line\n\n\nlast", ["a line", "another line", "last"]),
        ("# Heading\n\n* first\n- second\n> third", ["Heading", "first", "second", "third"]),
        ("The bell rang at c. noon", ["The bell rang at c. noon"]),
        ("He left. Über Nacht kam er", ["He left.", "Über Nacht kam er"]),
        (" \n \n", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "The old lighthouse of Ostrell was built by Maren Dovik.",
            ["old lighthouse", "Ostrell", "built", "Maren Dovik"],
        ),
        ("Its keeper, Iwo Brandt, died.", ["keeper", "Iwo Brandt", "died"]),
        ("In 1742 it was 3.5 m", ["1742"]),
        ("Ostrell and Ostrell", ["Ostrell"]),
        ("The and of", []),
    ],
)
def test_phrases(sentence: str, expected: list[str]) -> None:
    found = phrases(sentence)

    assert [phrase for phrase in expected if phrase in found] == expected
    assert all(phrase in sentence for phrase in found)
    assert len(found) == len(set(found))


def test_a_run_that_is_too_long_is_no_phrase() -> None:
    assert phrases("green brass lamp", longest=3) == ["green brass lamp"]
    assert phrases("green brass lamp", longest=2) == []


def test_punctuation_divides_phrases() -> None:
    assert phrases("green lamp; brass bell (tin drum)") == ["green lamp", "brass bell", "tin drum"]


def test_content_words() -> None:
    assert content_words("The Bell of Ostrell rang 7 times in '42, an ox and it") == {
        "bell",
        "ostrell",
        "rang",
        "7",
        "times",
        "42",
    }
    assert content_words("") == set()
