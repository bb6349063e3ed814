"""Finds pretrained weights: a local file or folder, or a repository of the Hugging Face hub.

What a hub has is downloaded once, into huggingface_hub's cache. Without a network the cache alone
is used, and what it lacks is an error that names the command which gets it.
"""

from collections.abc import Sequence
from pathlib import Path

from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.regular import is_file, is_folder, is_there


def file(
    checkpoint: str, filename: str, revision: str | None = None, needed_by: str = "model"
) -> Path:
    """The file `filename` of `checkpoint`.

    `checkpoint`: the file itself, a folder that holds it, or a hub id ("owner/name"). `revision`: a
    branch, tag or commit of the hub's repository. `needed_by` begins every message, such as
    "reward hps". ConfigError where it is not to be had; RunError where the hub fails.
    """
    local = Path(checkpoint).expanduser()
    if is_file(local):
        return local
    found = folder(checkpoint, revision, needed_by, [filename]) / filename
    if not found.is_file():
        raise ConfigError(f"{needed_by}: {checkpoint} has no file {filename}")
    return found


def folder(
    checkpoint: str,
    revision: str | None = None,
    needed_by: str = "model",
    allow_patterns: Sequence[str] | None = None,
) -> Path:
    """The folder `checkpoint`, or the one that the hub's repository of that id is cached in.

    `allow_patterns`: of a repository only the files that match one of them ("*.json") are
    downloaded. The rest as in `file`.
    """
    local = Path(checkpoint).expanduser()
    if is_folder(local):
        return local
    if is_there(local):
        raise ConfigError(f"{needed_by}: {checkpoint} is a file, and a folder is needed")
    check_local(checkpoint, needed_by)
    return _snapshot(checkpoint, revision, needed_by, allow_patterns)


def check_local(checkpoint: str, needed_by: str) -> None:
    """ConfigError for the path of a file or folder that is not there; nothing is asked of the hub.

    A hub's id has at most one slash: what else is not there is a path.
    """
    if not is_on_the_hub(checkpoint) and not is_there(Path(checkpoint).expanduser()):
        raise ConfigError(f"{needed_by}: there is no file or folder {checkpoint}")


def is_on_the_hub(checkpoint: str) -> bool:
    """Whether this would be looked for on the hub: no file or folder, and not written as one."""
    as_path = len(Path(checkpoint).parts) > 2 or checkpoint[:1] in ("/", ".", "~")
    return not as_path and not is_there(checkpoint)


def _snapshot(
    repository: str, revision: str | None, needed_by: str, allow_patterns: Sequence[str] | None
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{repository} at {revision}" if revision else repository
    at = f" --revision {revision}" if revision else ""
    get = f"`hf download {repository}{_asked_for(allow_patterns or ())}{at}`"
    page = f"https://huggingface.co/{repository}"
    try:
        patterns = list(allow_patterns) if allow_patterns else None
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise ConfigError(
            f"{needed_by}: {repository} is no file or folder, and no id of the hub (owner/name)"
        ) from None
    except GatedRepoError:
        raise ConfigError(
            f"{needed_by}: {repository} is gated; accept its licence on {page}, then run "
            f"`hf auth login` and {get}"
        ) from None
    except RevisionNotFoundError:
        raise ConfigError(f"{needed_by}: {repository} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{needed_by}: there is no folder {repository}, and the hub shows no such repository; "
            f"correct the name, or for a private one run `hf auth login` and {get}"
        ) from None
    except LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            status = error.__cause__.response.status_code
            raise RunError(f"{needed_by}: the hub answers {status} for {name}") from None
        raise ConfigError(
            f"{needed_by}: there is no folder {repository}, the cache lacks {name}, and the hub "
            f"cannot be reached; run {get} where it can, or name a folder"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise RunError(f"{needed_by}: the hub answers {status} for {name}") from None


def _asked_for(patterns: Sequence[str]) -> str:
    """What of a repository is to be downloaded, as `hf download` is told: files by their names, of
    folders all that is in them."""
    folders = dict.fromkeys(p.partition("/")[0] for p in patterns if "/" in p)
    rest = [p for p in patterns if "/" not in p]
    if folders or any("*" in p for p in rest):
        includes = [*rest, *(f"{folder}/*" for folder in folders)]
        return "".join(f" --include '{p}'" for p in includes)
    return "".join(f" {p}" for p in rest)
