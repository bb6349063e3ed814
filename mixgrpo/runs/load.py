"""Loads the policy as a run's checkpoint left it."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mixgrpo.errors import ConfigError, RunError, UnidentifiedError
from mixgrpo.files import checkpoint, manifest
from mixgrpo.files.records import EVALUATIONS, METRICS
from mixgrpo.models.policy import make_policy, reference_of, velocity_of
from mixgrpo.models.protocol import Conditioning, Policy
from mixgrpo.models.velocity import Velocity
from mixgrpo.runs.folder import CHECKPOINTS, CONFIG, Measured, claimed, finished_after
from mixgrpo.runs.location import locate
from mixgrpo.settings import usercode
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import load_layers
from mixgrpo.settings.identity import settings_hash
from mixgrpo.settings.paths import with_absolute_paths
from mixgrpo.settings.trust import check as check_trust
from mixgrpo.settings.trust import check_folder


def _newest(folder: Path) -> checkpoint.Checkpoint | None:
    """The newest checkpoint of a run, which may be training. RunError where it is not whole, or is
    not the one with which the run finished: any other would be the wrong model."""
    root = folder / "checkpoints"
    newest = checkpoint.read_newest(root)
    done = newest.iteration if newest else 0
    if (finished := finished_after(folder)) and finished > done:
        raise RunError(
            f"{manifest.place_of(root, finished)}: is missing, though the run finished with it; "
            f"--checkpoint {done} takes the newest one that is there"
        )
    return newest


def _check_whose(found: checkpoint.Checkpoint, config: RunConfig, folder: Path) -> None:
    """RunError where a checkpoint was made after other measurements than those of the run: it is
    another run's, or they are. A folder without measurements, as it is passed on, says nothing."""
    measured = Measured(config, folder)
    if found.digests is None or not (measured.metrics.is_file() and measured.evals.is_file()):
        return
    if measured.digests(found.iteration) == found.digests:
        return
    # Of a run that goes on elsewhere, lines may be seen later than the checkpoint.
    if finished_after(folder) is None and measured.whole() < found.iteration:
        return
    raise RunError(
        f"{manifest.place_of(folder / CHECKPOINTS, found.iteration)}: was made after other "
        f"measurements than those in {METRICS} and {EVALUATIONS}: it is another run's checkpoint, "
        "or they were changed; restore them, or run the run again"
    )


@dataclass(frozen=True)
class Loaded:
    """A policy as a run's checkpoint left it."""

    config: RunConfig
    policy: Policy
    velocity: Velocity
    """Of the trained model, in the run's precision."""
    reference: Velocity
    """Of the model that training started from."""
    iteration: int


class _Exchange:
    """A network that was trained whole, and the weights that it started from: one set is in the
    network, the other waits on the CPU. Two networks would not fit on one GPU."""

    def __init__(self, policy: Policy) -> None:
        self.parameters = policy.trainable_parameters()
        self.others = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        self.trained = True

    @torch.no_grad()
    def use(self, trained: bool) -> None:
        if trained == self.trained:
            return
        self.trained = trained
        for name, parameter in self.parameters.items():
            own = parameter.detach().to("cpu", copy=True)
            parameter.copy_(self.others[name])
            self.others[name] = own


def _warn_of_changes(config: RunConfig, folder: Path) -> None:
    """Say that settings, files or code of the user's own are not what they were in training."""
    record = usercode.read_record(folder)
    try:
        settings = settings_hash(config)
        changed = usercode.changes(record.code, usercode.user_code(config)) if record else ""
    except UnidentifiedError:  # not needed for all that one does with a run, and said where it is
        return
    trained = record.settings if record else claimed(folder)
    if trained not in (None, settings):
        warnings.warn(
            f"{folder / CONFIG}: does not give the settings that this run was trained with; the "
            "file, or the weights or prompts that it names, changed since. Restore them before "
            "you compare what it gives now",
            stacklevel=3,
        )
    if changed:
        warnings.warn(
            f"{folder}: the code of {changed} changed since this run was trained; what it gives "
            "now is not to be compared with the run's own measurements",
            stacklevel=3,
        )


def load_run(
    folder: Path,
    iteration: int | None = None,
    averaged: bool = True,
    device: str | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    trust: bool = True,
) -> Loaded:
    """The policy of the run in `folder` after `iteration` iterations; read-only.

    `iteration`: none is the newest checkpoint, 0 the model that training starts from. RunError
    where that one is not whole, or was made by another run; no other is taken for it.
    `averaged`: the averaged weights, which are the ones that evaluations judge. `precision`: other
    than the run's. Without `trust`, as the commands ask, ConfigError where the folder is not the
    user's own and names code (`mixgrpo.settings.trust`); nothing of that is run here.
    ConfigError for a folder that holds no run and for an iteration without a checkpoint.
    """
    # Absolute: code that a run calls may change the working directory.
    folder = locate(folder.absolute())
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{folder}: holds no run; name a run's folder, with a config.yaml in it")
    layers = load_layers(file)
    config = layers.validate()
    check_trust(config, layers.place, trust)
    check_folder(config, folder, trust)
    _warn_of_changes(config, folder)
    config = with_absolute_paths(config)
    if precision is not None:
        compute = config.compute.model_copy(update={"precision": precision})
        config = config.model_copy(update={"compute": compute})
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    root = folder / "checkpoints"
    if iteration:
        found: checkpoint.Checkpoint | None = checkpoint.load_at(root, iteration)
    else:
        found = _newest(folder) if iteration is None else None
    policy = make_policy(config, device)
    whole = config.model.train == "full" and found is not None
    exchange = _Exchange(policy) if whole else None
    if found is not None:
        _check_whose(found, config, folder)
        weights = found.tensors.get("average" if averaged else "weights", {})
        with torch.no_grad():
            for name, parameter in policy.trainable_parameters().items():
                if name not in weights or weights[name].shape != parameter.shape:
                    raise RunError(
                        f"{manifest.place_of(root, found.iteration)}: the checkpoint is of another "
                        f"model: it has no {name} of shape {list(parameter.shape)}"
                    )
                parameter.copy_(weights[name])
    plain = velocity_of(policy, config, device)

    def using(trained: bool) -> Velocity:
        assert exchange is not None

        def velocity(latents: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
            exchange.use(trained)
            return plain(latents, sigma, conditioning)

        return velocity

    if exchange is not None:
        velocity, reference = using(True), using(False)
    else:
        adapted = config.model.train == "lora"
        velocity, reference = plain, reference_of(policy, config, device) if adapted else plain
    return Loaded(
        config=config,
        policy=policy,
        velocity=velocity,
        reference=reference,
        iteration=found.iteration if found else 0,
    )
