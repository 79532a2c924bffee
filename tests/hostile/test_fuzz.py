"""A short run of every row of `make fuzz`: nothing may happen that must not.

How long a refusal takes is held to its limit by `make fuzz` alone: tests share their machine with others.
"""

import warnings
from importlib import import_module

import pytest

from fuzz.run import ROWS, zeros

SHORT = {"malformed": 600, "bombs": 18, "pickled": 10, "hooks": 16, "paths": 30, "state_dicts": 28, "settings": 50,
         "single_files": 10, "adapters": 60, "round_trips": 40, "races": 14, "bits": 40}  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.module)
@pytest.mark.filterwarnings("ignore")
def test_a_short_run(row, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = import_module(f"fuzz.{row.module}").run(SHORT[row.module], 1, tmp_path)
    assert found["cases"] >= SHORT[row.module]
    wrong = [what for what in zeros(row) if found.get(what) and what != "slow"]
    assert {what: found["examples"].get(what, found.get(what)) for what in wrong} == {}
