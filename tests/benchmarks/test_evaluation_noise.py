"""The formula for what evaluation adds, against simulated evaluations of known spread."""

import numpy as np
import pytest

from benchmarks.evaluation_noise import expected, seen, table


def test_the_formula_is_the_spread_of_repeated_evaluations() -> None:
    rng = np.random.default_rng(0)
    sds = rng.uniform(0.02, 0.4, 77)

    def drawn(images: int) -> np.ndarray:
        # Prompts differ in their mean, which does not spread the mean over fixed prompts.
        means = np.random.default_rng(1).normal(0, 1, (77, 1))
        return means + sds[:, None] * rng.standard_normal((77, images))

    for images in (2, 8, 64):
        truth = np.sqrt((sds**2).sum() / images) / 77
        repeated = np.std([drawn(images).mean() for _ in range(4000)])
        assert repeated == pytest.approx(truth, rel=0.05)
        assert expected(drawn(2000), images) == pytest.approx(truth, rel=0.03)
        found = seen(drawn(2000 * images), images)
        assert found == pytest.approx(truth, rel=0.06)


def test_one_block_has_no_spread_and_the_table_says_so() -> None:
    differences = np.random.default_rng(0).standard_normal((4, 8))
    assert seen(differences, 8) is None
    lines = table(differences).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["1", "2", "4", "8"]
    assert lines[-1].endswith("| - |")
