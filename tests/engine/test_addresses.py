"""The addresses at which native code finds numbers."""

from array import array

import numpy as np
import pytest
import torch
from pcrm._engine.native import address

KINDS = {"array": lambda x: array("d", x), "numpy": np.array, "tensor": torch.tensor}


@pytest.mark.parametrize("kind", KINDS)
def test_address_is_of_the_first_number(kind):
    numbers = KINDS[kind]([0.5, 1.5])
    view = np.frombuffer(numbers) if kind == "array" else np.asarray(numbers)
    assert address(numbers) == view.ctypes.data != 0


@pytest.mark.parametrize(
    "empty", [array("q"), np.empty(0), np.empty(3)[:0], torch.empty(0)], ids=lambda x: type(x).__name__
)
def test_address_of_no_numbers_is_0(empty):
    assert address(empty) == 0
