"""Prints how far evaluation alone spreads the difference of two runs, against images per prompt.

    python -m benchmarks.evaluation_noise RUN OTHER [--reward composition]

RUN and OTHER: folders of two finished runs of the same seed, with many images in their last
evaluation (`evaluation.final_images_per_prompt`). Images of the same prompt and index begin with
the same noise, so that differences are paired. With prompts fixed, the standard deviation of the
difference of two means is sqrt(sum_p Var_j(e_pj) / J) / P for J images of each of P prompts, e_pj
being the differences of single images. Beside it stands what was seen: the standard deviation of
the difference over disjoint blocks of J images.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mixgrpo import cli
from mixgrpo.errors import ConfigError
from mixgrpo.files.jsonlines import read_lines
from mixgrpo.files.records import EVALUATIONS, SCORES_DIGEST
from mixgrpo.files.scores import REWARD, read_scores

IMAGES = (1, 2, 4, 8, 16, 32, 64)


def last_scores(run: Path, reward: str) -> np.ndarray:
    """Scores [prompts, images] of a run's last evaluation."""
    line = (read_lines(run / EVALUATIONS) or [{}])[-1]
    if SCORES_DIGEST not in line:
        raise ConfigError(f"{run}: holds no scores of images")
    table = read_scores(run, line["iteration"], line[SCORES_DIGEST])
    column = f"{REWARD}{reward}"
    if column not in table.column_names:
        raise ConfigError(f"--reward {reward}: is none of those of {run}")
    values: np.ndarray = table[column].to_numpy().astype(float)
    return values.reshape(line["prompts"], -1)


def expected(differences: np.ndarray, images: int) -> float:
    """Of the mean difference with so many images of each prompt. differences: [prompts, images]."""
    within = differences.var(1, ddof=1)
    return float(np.sqrt(within.sum() / images) / len(differences))


def seen(differences: np.ndarray, images: int) -> float | None:
    """The same over disjoint blocks of so many images; None where there are fewer than two."""
    blocks = differences.shape[1] // images
    if blocks < 2:
        return None
    parts = differences[:, : blocks * images].reshape(len(differences), blocks, images)
    return float(parts.mean((0, 2)).std(ddof=1))


def table(differences: np.ndarray) -> str:
    """Markdown: images per prompt, the standard deviation by the formula and as seen."""
    rows = ["| images per prompt | sd of the difference | seen, blocks |", "|---|---|---|"]
    for images in (n for n in IMAGES if n <= differences.shape[1]):
        found, blocks = seen(differences, images), differences.shape[1] // images
        there = "-" if found is None else f"{found:.4f}, {blocks}"
        rows.append(f"| {images} | {expected(differences, images):.4f} | {there} |")
    return "\n".join(rows)


def main(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    other: Annotated[Path, typer.Argument(help="Another run's, of the same seed.")],
    reward: Annotated[str, typer.Option(help="Of both runs.")] = "composition",
) -> None:
    """Print what evaluation alone adds to a paired difference of two runs."""
    a, b = (last_scores(folder, reward) for folder in (run, other))
    if a.shape != b.shape or a.shape[1] < 2:
        raise ConfigError(f"{run} and {other}: need the same images, at least two of each prompt")
    cli.say(f"{reward}: difference {float((a - b).mean()):+.4f}, {a.shape[0]} prompts")
    cli.say(table(a - b))


if __name__ == "__main__":
    cli.run(main)
