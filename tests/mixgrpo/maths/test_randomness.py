"""Noise by name: the same wherever it is drawn, another for every name."""

import os
import subprocess
import sys

import pytest
import torch
from scipy.stats import kstest

from mixgrpo.maths.randomness import generator, normal, permutation


def test_a_key_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = normal((2, 3), "step", 1, 2, "a prompt", 0)
    torch.manual_seed(7)
    torch.randn(5)
    normal((9,), "other")
    assert torch.equal(normal((2, 3), "step", 1, 2, "a prompt", 0), first)


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    normal((9,), "key")
    permutation(9, "key")
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize(
    "other",
    [
        ("initial", 1, 2, "p", 0),
        ("step", 2, 2, "p", 0),
        ("step", 1, 3, "p", 0),
        ("step", 1, 2, "q", 0),
        ("step", 1, 2, "p", 1),
        ("step", 12, "p", 0),
        ("step", "1", 2, "p", 0),
        ("step", 1, 2, "p0"),
    ],
)
def test_another_key_gives_other_numbers(other: tuple[str | int, ...]) -> None:
    assert not torch.equal(normal((8,), "step", 1, 2, "p", 0), normal((8,), *other))


def test_numbers_are_normal_and_independent_between_keys() -> None:
    draws = torch.stack([normal((4,), "k", i) for i in range(5000)])
    assert kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    assert float(torch.corrcoef(draws.T).triu(1).abs().max()) < 0.05
    neighbours = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]
    assert abs(float(neighbours)) < 0.05


def test_permutation_is_one() -> None:
    assert sorted(permutation(20, "k", 1)) == list(range(20))
    assert permutation(20, "k", 1) == permutation(20, "k", 1) != permutation(20, "k", 2)
    assert permutation(0, "k") == []


def test_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "from mixgrpo.maths.randomness import *;"
        "print(normal((3,), 'k', 1, 'p').tolist(), permutation(6, 'k'))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = f"{normal((3,), 'k', 1, 'p').tolist()} {permutation(6, 'k')}\n"
    assert printed == {here}


def test_generators_are_fresh() -> None:
    assert generator("k") is not generator("k")
    assert (generator("k").random(5) == generator("k").random(5)).all()
