"""Checks for what would end a run before its first iteration, made before anything is written.

Imports the code that a configuration names (rewards, optimizer, model), reads the configuration
files of its weights and its prompts, and loads no weights. Whether a repository is on the hub is
not checked. As a program it is the harness's, which itself imports no torch:

    python -m mixgrpo.training.preflight     # configurations on standard input, one of JSON a line

A line is `{"config": CONFIGURATION, "here": BOOLEAN}`, the latter where it would run on this
machine. It answers with lines of JSON: `{"at": 0, "begins": TEXT}` before each check of the first
configuration, `{"at": 0, "error": TEXT}`, `{"at": 0, "warning": TEXT}`, `{"at": 0, "disk": BYTES}`
of a run's checkpoints, and `{"over": true}` in the end. What the imported code prints is lost, but
for the stream of errors.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mixgrpo.catalogue.models import DIFFUSION, PIPELINES, hub_name
from mixgrpo.catalogue.rewards import is_built_in, setting_of
from mixgrpo.catalogue.scenes import REWARDS, SIZES
from mixgrpo.compute.foreign import in_words, settings_restored
from mixgrpo.errors import ConfigError, ErrorList, RunError, UnidentifiedError
from mixgrpo.files.hub import check_local, is_on_the_hub
from mixgrpo.files.prompts import read_prompts
from mixgrpo.models.load import check_model
from mixgrpo.rewards.load import check_reward
from mixgrpo.settings.config import ModelConfig, OptimizerConfig, RunConfig
from mixgrpo.settings.configfile import located_errors
from mixgrpo.settings.layers import Layers
from mixgrpo.settings.usercode import Modules, changes, undetected_imports, user_code

if TYPE_CHECKING:
    from torch.nn import Module, Parameter


Check = tuple[str, Callable[[], None]]
"""What is checked, in words that begin with its setting, and the check, which raises."""


def is_plain(config: RunConfig) -> bool:
    """Whether `check_code` could find nothing: no code and no file is named but built-in ones."""
    rewards, model = config.rewards, config.model
    used = {*rewards.train, *rewards.held_out}
    if model.name == "scenes":
        plain_model = model.checkpoint in (None, *SIZES)
        plain_model = plain_model and not (config.prompts.train or config.prompts.held_out)
    else:
        plain_model = model.name in DIFFUSION and _is_on_the_hub(model)
    return (
        plain_model
        and "ocr" not in used  # it needs something of every prompt
        and not _names_layers(model)
        and all(is_built_in(name) and not rewards.options.get(name) for name in used)
        and config.optimizer.name == "adamw"
        and not config.optimizer.options
        and not config.output.trackers
        and config.compute.attention is None
    )


def check_code(config: RunConfig, here: bool = True) -> Iterator[Check]:
    """The checks that import code, or read what lies beside weights. `here`: it would run on this
    machine."""
    for name in (*config.rewards.train, *config.rewards.held_out):
        key = setting_of(name, config.rewards)
        yield key, lambda n=name: check_reward(n, config.rewards, here)  # type: ignore[misc]
    yield f"optimizer.name {config.optimizer.name}", lambda: _check_optimizer(config)
    yield f"model.name {config.model.name}", lambda: _check_model(config)
    yield "prompts", lambda: _check_prompts(config)
    yield "output.trackers", lambda: _check_trackers(config)


def check_count(config: RunConfig) -> None:
    """ConfigError where there are fewer prompts than an iteration trains on."""
    prompts = _prompts(config, "train")
    if prompts is not None and len(prompts) < config.rollout.prompts:
        named = config.prompts.train
        raise ConfigError(
            f"{f'prompts.train: {named}' if named else f'rollout.prompts: {config.model.name}'} "
            f"has {len(prompts)} prompts, and an iteration trains on rollout.prompts: "
            f"{config.rollout.prompts}; {'add prompts, or ' * bool(named)}lower that"
        )


def _prompts(config: RunConfig, key: str) -> list[str] | None:
    """The prompts of a file, or the model's own; None where those of a package's model are known
    to that alone."""
    from mixgrpo.scenes import prompts

    file = getattr(config.prompts, key)
    if file:
        return read_prompts(Path(file))
    if config.model.name != "scenes":
        return None
    return prompts.train_prompts() if key == "train" else prompts.held_out_prompts()


def check(config: RunConfig, layers: Layers) -> None:
    """All checks, in this process. ConfigError with all that is wrong and where it was written."""
    errors = ErrorList()
    with errors.collected(), located_errors(layers):
        check_count(config)
    if not is_plain(config):
        before = _code(config)
        # What is imported here may change what all of the process shares.
        with settings_restored():
            for _, one in check_code(config):
                with errors.collected(), located_errors(layers):
                    one()
        errors.raise_all()
        if before is not None and (now := user_code(config)) != before:  # imported is the old one
            raise ConfigError(
                f"the code of {changes(before, now)} changed while the run was starting; run the "
                "same command again"
            )
    errors.raise_all()


def _code(config: RunConfig) -> dict[str, Modules] | None:
    """The user's code that a run names; None where some is missing, which `check_code` reports."""
    try:
        return user_code(config)
    except UnidentifiedError:
        return None


def warn_of_memory(config: RunConfig) -> None:
    """Warn where a run of this process alone cannot fit into the memory of its device."""
    if config.model.name in DIFFUSION and os.environ.get("WORLD_SIZE", "1") == "1":
        text = _needs(config).get("warning")
        if text is not None:
            warnings.warn(str(text), stacklevel=2)


def _checkpoint(model: ModelConfig) -> str:
    return str(hub_name(model.name, model.checkpoint))


def _is_on_the_hub(model: ModelConfig) -> bool:
    return "/" in _checkpoint(model) and is_on_the_hub(_checkpoint(model))


def _check_optimizer(config: RunConfig) -> None:
    optimizer = config.optimizer
    if optimizer.name == "adamw" and not optimizer.options:
        return
    from mixgrpo.training.optimizer import make_optimizer

    dimensions: Iterable[int] = range(1, 5)
    try:
        make_optimizer(optimizer, _weights(dimensions))
    except ConfigError:
        # Some take only matrices: whether all weights are, the network says, which takes seconds.
        make_optimizer(optimizer, _weights([2]))
        network = _network(config)
        trained = network.parameters() if network is not None else ()
        dimensions = sorted({p.ndim for p in trained if p.requires_grad}) or [2]
        make_optimizer(optimizer, _weights(dimensions))
    _check_step(optimizer, dimensions)


def _check_step(optimizer: OptimizerConfig, dimensions: Iterable[int]) -> None:
    """ConfigError where an optimizer takes no step, or then has what no checkpoint can hold."""
    import torch

    from mixgrpo.training.optimizer import make_optimizer, set_learning_rate, state_tensors

    failure: BaseException | None = None
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        names = {str(p.ndim): p for p in _weights(dimensions, device)}
        made = make_optimizer(optimizer, names.values())
        for parameter in names.values():
            parameter.grad = torch.full_like(parameter, 0.1)
        try:
            set_learning_rate(made, optimizer.lr)
            made.step()
        except (Exception, SystemExit) as error:  # some work on a GPU alone
            failure = failure or error
            continue
        state_tensors(made, names)
        return
    assert failure is not None
    raise ConfigError(
        f"optimizer.name {optimizer.name}: fails at its first step ({in_words(failure)}); change "
        "optimizer.options, or name another optimizer"
    ) from failure


def _weights(dimensions: Iterable[int], device: str = "cpu") -> "list[Parameter]":
    """A small weight of each number of dimensions."""
    import torch

    return [torch.nn.Parameter(torch.zeros((2,) * n, device=device)) for n in dimensions]


def _network(config: RunConfig) -> "Module | None":
    """The network without its weights, where it is known without the hub."""
    from mixgrpo.forecast.architecture import architecture
    from mixgrpo.forecast.passes import policy_of

    known = architecture(config)
    return None if isinstance(known, str) else policy_of(config, known).network


def _check_model(config: RunConfig) -> None:
    model = config.model
    if model.name not in DIFFUSION:
        if model.name != "scenes" or model.checkpoint not in (None, *SIZES):
            check_model(model)
    elif not _is_on_the_hub(model):
        _check_pipeline(config)
    if config.compute.attention is not None:
        from mixgrpo.models.attention import check_attention

        check_attention(config.compute.attention)
    if _names_layers(model):
        _network(config)


def _names_layers(model: ModelConfig) -> bool:
    return model.train == "lora" and model.lora_targets != ModelConfig().lora_targets


def _check_pipeline(config: RunConfig) -> None:
    """ConfigError for a local folder that is no pipeline of the model's."""
    import importlib

    from mixgrpo.models.embeddings import embeddings_folder
    from mixgrpo.settings.paths import check_folder

    check_local(_checkpoint(config.model), "model.checkpoint")
    module, _, name = PIPELINES[config.model.name].partition(":")
    getattr(importlib.import_module(module), name).check_folder(
        config.model.model_copy(update={"checkpoint": _checkpoint(config.model)})
    )
    check_folder("prompts.embeddings", embeddings_folder(config.prompts.embeddings))


def _check_prompts(config: RunConfig) -> None:
    """ConfigError for a prompt that the model, or a reward, cannot read."""
    rewards = {*config.rewards.train, *config.rewards.held_out}
    for key in ("train", "held_out"):
        file = getattr(config.prompts, key)
        for prompt in _prompts(config, key) or []:
            try:
                if not file:
                    pass  # the model's own, which it and its rewards read
                elif rewards & REWARDS.keys():
                    from mixgrpo.scenes.prompts import parse

                    parse(prompt)  # has no other words than the model knows
                elif config.model.name == "scenes":
                    from mixgrpo.scenes.model import word_indices

                    word_indices([prompt])
                if "ocr" in rewards:
                    from mixgrpo.rewards.ocr import quoted

                    quoted(prompt)
            except (ValueError, ConfigError) as error:
                if not file:
                    raise ConfigError(
                        f"{setting_of('ocr', config.rewards)}: cannot judge the prompts of model "
                        f"{config.model.name} ({error}); set prompts.{key} to a file of prompts "
                        "that do"
                    ) from None
                raise ConfigError(
                    f"prompts.{key}: {file}: {error}; correct it, or name another file"
                ) from None


def _check_trackers(config: RunConfig) -> None:
    from mixgrpo.training.trackers import check_trackers

    check_trackers(config.output.trackers)


def _work(lines: Iterator[str], say: Callable[[dict[str, object]], None]) -> None:
    for at, line in enumerate(lines):
        asked = json.loads(line)
        config = RunConfig.model_validate_json(json.dumps(asked["config"]))
        for what, one in check_code(config, asked["here"]):
            say({"at": at, "begins": what})
            try:
                one()
            except (ConfigError, RunError) as error:
                for each in error.errors if isinstance(error, ConfigError) else (error,):
                    say({"at": at, "error": str(each)})
            except (Exception, SystemExit) as error:
                say({"at": at, "error": f"{what}: its check failed: {in_words(error)}"})
        with suppress(ConfigError):  # said where the run's hash is computed
            for text in undetected_imports(config):
                say({"at": at, "warning": text})
        if asked["here"] and config.model.name in DIFFUSION:
            with suppress(ConfigError):  # reported above
                for key, value in _needs(config).items():
                    say({"at": at, key: value})


def _needs(config: RunConfig) -> dict[str, object]:
    """What is known of the memory and the disk that a run takes, against those of this machine."""
    import torch

    from mixgrpo.forecast.estimate import least_memory

    needs_least = least_memory(config)
    if needs_least is None:
        return {}
    device, checkpoint = needs_least
    output = config.output
    kept = output.checkpoints_kept + len(output.keep) + 1  # the next one while it is written
    needs: dict[str, object] = {"disk": kept * checkpoint}
    if torch.cuda.is_available():
        where, there = "its GPU has", torch.cuda.get_device_properties(0).total_memory
    else:
        where = "this machine, which has no GPU, has"
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device > there:
        needs["warning"] = (
            f"model.name {config.model.name}: weights, their average, gradients and the "
            f"optimizer's state of one run take {_gib(device)}, and {where} {_gib(there)}"
        )
    return needs


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say(what: dict[str, object]) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    _work(iter(sys.stdin.readlines()), say)
    say({"over": True})


if __name__ == "__main__":
    main()
