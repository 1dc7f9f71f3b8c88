"""The fuzzers' corpus, without atheris: what was found stays mended, and nothing new breaks."""

import logging
from collections.abc import Iterator
from random import Random

import pytest

from fuzz import TARGETS, target_named
from fuzz.__main__ import CORPUS, LONGEST
from fuzz.choices import Choices

MOST_BYTES = 1 << 20


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_keeps_to_its_targets_property(name: str) -> None:
    run = target_named(name)
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) > 10
    for path in inputs:
        try:
            run(path.read_bytes())
        except Exception as error:
            error.add_note(f"python -m fuzz {name} {path}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_nobody_has_seen_do_so_too(name: str) -> None:
    run, random = target_named(name), Random(name)
    for _ in range(50):
        run(random.randbytes(random.randrange(LONGEST)))


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_BYTES


def test_a_used_up_input_decides_for_the_first_and_ends() -> None:
    choices = Choices(b"")
    assert not choices.more
    assert (choices.below(7), choices.pick("abc"), choices.number((5, 6)), choices.take(3)) == (
        0,
        "a",
        5,
        b"",
    )
    assert list(choices.pieces(b"whole")) == [b"whole"]
