"""Warnings point at the line of the user, whatever lies between."""

import sys
import types
import warnings

import pytest
import torch

from latentgen.runtime.device import resolve_dtype
from latentgen.runtime.warn import warn_user

CPU = torch.device("cpu")


def next_line():
    """The place below the line that calls this, as a warning gives it."""
    caller = sys._getframe(1)
    return caller.f_code.co_filename, caller.f_lineno + 1


def place_of(caught):
    return caught[0].filename, caught[0].lineno


def test_a_warning_points_at_the_users_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        here = next_line()
        resolve_dtype("fp16", CPU)
    assert place_of(caught) == here


def test_decorators_of_torch_are_no_users():
    """The pipelines' calls are wrapped in `torch.no_grad()`, whose frame stands between theirs and the user's."""

    def body():
        warn_user("look")

    ours = types.FunctionType(body.__code__, {"__name__": "latentgen.pipelines.some", "warn_user": warn_user})
    decorated = torch.no_grad()(ours)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        here = next_line()
        decorated()
    assert place_of(caught) == here


def times_shown(every_time):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_user(f"every_time={every_time}", every_time=every_time)
    return len(caught)


def test_python_shows_a_warning_of_a_line_once_unless_it_is_about_each_call():
    assert times_shown(False) == 1
    assert times_shown(True) == 3


def test_an_ignored_warning_stays_ignored():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="quiet")
        warn_user("quiet", every_time=True)
        with pytest.raises(UserWarning, match="loud"):
            warn_user("loud")
