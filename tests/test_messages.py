"""Phrases that messages share: counts in words, names that were meant, the first few of many names."""

import pytest

from rsbdali.data.names import first_few
from rsbdali.errors import counted, nearest


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("step",), "0 steps"),
        (1, ("step",), "1 step"),
        (1200, ("step",), "1,200 steps"),
        (1, ("batch", "batches"), "1 batch"),
        (2, ("batch", "batches"), "2 batches"),
    ],
)
def test_one_of_a_thing_has_no_s(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


def test_names_that_were_meant() -> None:
    known = ["resnet50", "resnet50d", "vgg"]
    assert nearest("resnet5", known) == ", did you mean 'resnet50'?"
    assert nearest("resnet5", known, most=3) == ", did you mean 'resnet50' or 'resnet50d'?"
    assert nearest("resnet5", [*known, "resnet51"], most=3) == ", did you mean 'resnet51', 'resnet50' or 'resnet50d'?"
    assert nearest("zzz", known) == ""


def test_dots_stand_for_names_that_are_left_out() -> None:
    assert first_few(["a", "b"]) == "a, b"
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few(["a", "b", "c", "d"]) == "a, b, c, ..."
