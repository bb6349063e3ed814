"""The score of every image of an evaluation: a table, and scores/<iteration>.parquet of a run.

One row an image, prompt after prompt, each by the index of its images:

    prompt          string   what the image was asked to show
    image           int32    its index among the images of the prompt, from 0
    seed            int64    of its noise, which depends on (seed, prompt, image) alone
    reward_<name>   float32  the score, for every reward

Images of two evaluations with the same prompt, image and seed begin with the same noise: they are
pairs. The sha256 of a run's file stands in the line of eval.jsonl that was computed from the same
scores (`records.check_scores`). Nothing here imports torch.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mixgrpo.files.atomic import flush, write_bytes
from mixgrpo.files.records import DamagedFileError, scores_bytes, scores_file

if TYPE_CHECKING:
    import pyarrow as pa

REWARD = "reward_"
"""What the name of a reward's column begins with."""


def scores_table(
    prompts: Sequence[str],
    seed: int,
    scores: Mapping[str, np.ndarray],
    constants: Mapping[str, float] | None = None,
) -> "pa.Table":
    """The table of scores [prompts, images] by reward, all of the same shape.

    `constants` are further columns, before the others, each with one number in all rows.
    """
    import pyarrow as pa

    images = next(iter(scores.values())).shape[1]
    rows = len(prompts) * images
    columns = {
        **{name: pa.array(np.full(rows, value)) for name, value in (constants or {}).items()},
        "prompt": pa.array([p for p in prompts for _ in range(images)], pa.string()),
        "image": pa.array(np.tile(np.arange(images, dtype=np.int32), len(prompts))),
        "seed": pa.array(np.full(rows, seed, np.int64)),
        **{
            f"{REWARD}{name}": pa.array(values.astype(np.float32).ravel())
            for name, values in scores.items()
        },
    }
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    return pa.table(list(columns.values()), pa.schema(fields))


def joined(tables: "Iterable[pa.Table]") -> "pa.Table":
    """Tables of the same columns, one after the other."""
    import pyarrow as pa

    return pa.concat_tables(tables)


def as_parquet(table: "pa.Table") -> bytes:
    """A table as the bytes of a Parquet file: the same for the same table and version of Arrow."""
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(table, stream, compression="zstd", store_schema=False)
    return stream.getvalue()


def keep_scores(folder: Path, iteration: int, table: "pa.Table") -> str:
    """Leave the scores of the evaluation after so many iterations in a run's folder, on the disk
    when this returns. Their sha256, for the evaluation's line."""
    return write_scores(folder, iteration, as_parquet(table))


def write_scores(folder: Path, iteration: int, content: bytes) -> str:
    """The same of a file's content."""
    file = scores_file(folder, iteration)
    if not file.parent.is_dir():
        file.parent.mkdir()
        flush(folder)
    write_bytes(file, content)
    flush(file.parent)
    return hashlib.sha256(content).hexdigest()


def read_scores(folder: Path | str, iteration: int, digest: str) -> "pa.Table":
    """The scores of an evaluation of the run in `folder`, prompts as a dictionary's. `digest`: what
    its line says. DamagedFileError where they are not those."""
    import pyarrow as pa
    from pyarrow import parquet

    content = scores_bytes(folder, iteration, digest)
    try:
        file = parquet.ParquetFile(pa.BufferReader(content), read_dictionary=["prompt"])
        return file.read(use_threads=False)
    except pa.ArrowException as error:  # of bytes that have their digest: another version's
        why = f"cannot be read: {str(error).splitlines()[0]}"
        raise DamagedFileError(scores_file(folder, iteration), why) from None
