"""The score of every image of a sweep's runs, and the means by prompt.

    scores = read_scores(sweep, runs_dir, last_only=True)
    means = prompt_means(scores)

Images of two runs with the same seed, prompt and image begin with the same noise: they are pairs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.runs.result import FIX, read_result
from harness.runs.state import sweep_folder
from harness.study.spec import Run, Sweep
from mixgrpo.files.jsonlines import read_lines
from mixgrpo.files.records import EVALUATIONS, SCORES_DIGEST, DamagedFileError
from mixgrpo.files.scores import REWARD
from mixgrpo.files.scores import read_scores as read_table
from mixgrpo.runs.location import locate

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

KEYS = ("arm", "seed", "iteration", "prompt", "image")


def read_scores(
    sweep: Sweep, runs_dir: Path, last_only: bool = False, left_out: list[str] | None = None
) -> "pd.DataFrame":
    """One row an image of every evaluation of every finished run, arm by arm, then by seed.

    Columns: arm (a category), seed (the run's), iteration, prompt (a category), image (its index
    among those of the prompt), reward_<name> (float32) for every reward of any run, NaN where a run
    has it not. `last_only`: only the evaluation after training. Evaluations of earlier versions,
    which kept no scores, are not in it. A damaged run is left out as a whole, and named in
    `left_out`. RunError for a folder of another version.
    """
    import pandas as pd
    import pyarrow as pa

    order = {arm.name: index for index, arm in enumerate(sweep.arms)}
    place = sweep_folder(sweep, runs_dir)
    tables: list[pa.Table] = []
    for run in sorted(sweep.runs, key=lambda run: (order[run.arm], run.seed)):
        try:
            tables += _of_run(run, locate(place / run.folder_name), last_only)
        except DamagedFileError as damaged:
            if left_out is not None:
                left_out.append(f"{run.name}: {damaged.file}: {damaged.why}; {FIX}")
    if not tables:
        return pd.DataFrame(columns=[*KEYS])
    table = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    del tables
    frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
    frame["arm"] = frame["arm"].cat.set_categories([*order])
    return frame[[*KEYS, *(name for name in frame.columns if name not in KEYS)]]


def _of_run(run: Run, folder: Path, last_only: bool) -> "list[pa.Table]":
    """The scores of a run's evaluations; none of one that is not finished."""
    result = read_result(folder, run)
    if result is None:
        return []
    return list(_evaluations(run, folder, result.iterations if last_only else 0))


def _evaluations(run: Run, folder: Path, since: int) -> "Iterator[pa.Table]":
    import pyarrow as pa

    for line in read_lines(folder / EVALUATIONS):
        iteration, digest = line["iteration"], line.get(SCORES_DIGEST)
        if iteration < since or digest is None:
            continue
        table = read_table(folder, iteration, digest).drop_columns(["seed"])
        arm = pa.array([run.arm]).dictionary_encode()
        constants = {
            "arm": pa.DictionaryArray.from_arrays(
                pa.repeat(pa.scalar(0, pa.int32()), len(table)), arm.dictionary
            ),
            "seed": pa.repeat(pa.scalar(run.seed, pa.int64()), len(table)),
            "iteration": pa.repeat(pa.scalar(iteration, pa.int64()), len(table)),
        }
        for name, column in constants.items():
            table = table.append_column(name, column)
        yield table


def prompt_means(scores: "pd.DataFrame") -> "pd.DataFrame":
    """The mean over the images of each prompt.

    One row a prompt of every evaluation, in the order of `scores`: arm, seed, iteration, prompt,
    `images`, reward_<name> (float32). The mean over the prompts of a run is that of its evaluation.
    """
    keys = [key for key in KEYS if key != "image"]
    rewards = [name for name in scores.columns if name.startswith(REWARD)]
    groups = scores.groupby(keys, sort=False, observed=True)
    means = groups[rewards].mean().astype("float32")
    means.insert(0, "images", groups.size().astype("int32"))
    return means.reset_index()
