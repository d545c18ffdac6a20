import io
import random

import numpy as np
import torch

from mrg.run.rng import rng_state, set_rng_state


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_generators_go_on_after_a_trip_through_a_file():
    random.gauss(0, 1)  # leaves a second number behind, as numpy's does
    np.random.randn()
    file = io.BytesIO()
    torch.save(rng_state(), file)
    expected = [draw() for _ in range(3)]
    file.seek(0)
    set_rng_state(torch.load(file, weights_only=True))
    assert [draw() for _ in range(3)] == expected
    assert draw() not in expected
