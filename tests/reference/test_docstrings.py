"""Docstrings of knobs: those below the fields, of the class that declares the field."""

from __future__ import annotations

from pipeline.knobs import Knobs
from pipeline.reference.docstrings import docstrings


class Above(Knobs):
    first: int = 0
    """Of the class above,
    on two lines."""
    second: int = 0
    """To be replaced."""
    third: int = 0


class Below(Above):
    second: int = 1
    """Replaced."""
    first: int = 1
    fourth: int = 0
    """New."""

    def method(self) -> str:
        """No knob."""
        return ""


def test_a_field_has_the_docstring_of_the_class_that_declares_it():
    expected = {"first": "Of the class above,\non two lines.", "second": "Replaced.", "fourth": "New."}
    assert docstrings(Below) == expected
    assert docstrings(Above) == {"first": "Of the class above,\non two lines.", "second": "To be replaced."}


def test_a_class_inside_a_function_has_its_own():
    class Below(Knobs):
        fifth: int = 0
        """Inside."""

    assert docstrings(Below) == {"fifth": "Inside."}
