"""Errors: one root, each also a standard error, each with the four parts of a message."""

import inspect
import pickle

import pytest

from allotment import errors
from allotment.errors import AllotmentError, UnknownPromptError, message

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, Exception) and cls is not AllotmentError
]
STANDARD = {
    "InvalidInputError": ValueError,
    "InfeasibleBudgetError": ValueError,
    "DuplicatePromptError": ValueError,
    "UnknownPromptError": KeyError,
    "RewardMismatchError": ValueError,
    "StateError": ValueError,
    "StateVersionError": errors.StateError,
    "ConfigError": ValueError,
    "RunDirectoryError": FileExistsError,
    "OutOfMemoryError": MemoryError,
    "MissingExtraError": ImportError,
}
TEXT = message("bad thing", got=3, allowed="1 or 2", fix="pass 2")


def test_every_error_is_listed_here():
    assert {cls.__name__ for cls in CLASSES} == set(STANDARD)
    assert all(cls.__module__ == "allotment.errors" for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_it_is_an_allotment_error_and_a_standard_one(cls):
    assert issubclass(cls, AllotmentError)
    assert issubclass(cls, STANDARD[cls.__name__])
    assert any(base.__module__ == "builtins" and base not in (Exception, BaseException, object) for base in cls.__mro__)
    assert cls.__doc__


@pytest.mark.parametrize("cls", [AllotmentError, *CLASSES])
def test_it_survives_a_process_boundary(cls):
    again = pickle.loads(pickle.dumps(cls(TEXT)))
    assert type(again) is cls
    assert str(again) == str(cls(TEXT)) == TEXT


def test_an_unknown_prompt_is_not_shown_quoted():
    assert str(KeyError("a\nb")) == "'a\\nb'"
    assert str(UnknownPromptError("a\nb")) == "a\nb"
    assert str(UnknownPromptError()) == ""


def test_a_message_has_four_parts():
    assert TEXT == "bad thing\n  got:     3\n  allowed: 1 or 2\n  fix:     pass 2"
