"""Rewards and models of other packages: loading one reports what is wrong with it."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixgrpo.errors import ConfigError, RunError
from mixgrpo.models.load import load_model
from mixgrpo.rewards.load import load_reward
from tests.mixgrpo.toy import ToyPolicy

_numbers = itertools.count()

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package: `install(source, group, name="attribute", ...)`; returns its module."""

    def installed(source: str, group: str, **names: str) -> str:
        module = f"installed_{next(_numbers)}"
        site = tmp_path / module
        info = site / f"{module}-0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0\n")
        points = [f"{name} = {module}:{attribute}" for name, attribute in names.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[mixgrpo.{group}]", *points]) + "\n")
        monkeypatch.syspath_prepend(site)
        return module

    return installed


def refused(load: Callable[[], object]) -> str:
    """What the ConfigError of `load` says: one line."""
    with pytest.raises(ConfigError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


REWARDS = """
class Fine:
    name = "beauty"
    def score(self, images, prompts):
        return images.mean((1, 2, 3))

def fine():
    return Fine()

def named(name):
    made = Fine()
    made.name = name
    return made

class Nameless:
    score = Fine.score

class Scoreless:
    name = "beauty"

def plain(images, prompts):
    return images.mean((1, 2, 3))

instance = Fine()

def raises():
    raise ValueError("no key for\\n  the server")

def forwards():
    return plain()

def asks():
    open("/nowhere/key")
"""


@pytest.mark.parametrize("attribute", ["Fine", "fine"])
def test_a_reward_is_made_by_a_class_or_a_factory(install: Install, attribute: str) -> None:
    install(REWARDS, "rewards", beauty=attribute)
    reward = load_reward("beauty")
    assert reward.name == "beauty"
    assert reward.score(torch.full((2, 3, 4, 4), 0.5), ["a", "b"]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("attribute", "parts"),
    [
        ("Nameless", ["has no name; give it the name beauty"]),
        ("Scoreless", ["makes an object of Scoreless without a method score"]),
        (
            "plain",
            [
                ":plain must be a class or a factory whose arguments all have defaults",
                "name and score",
            ],
        ),
        ("named", [":named must be a class or a factory whose arguments all have defaults"]),
        ("instance", [":instance must be a class or a factory whose arguments all have defaults"]),
        ("raises", [":raises", "fails: ValueError: no key for the server"]),
        # A TypeError of the factory's own is not taken for a wrong signature.
        ("forwards", [":forwards", "fails: TypeError: plain() missing 2 required"]),
        ("asks", [":asks", "FileNotFoundError", "/nowhere/key"]),
        ("absent", [":absent fails: AttributeError"]),
    ],
)
def test_what_is_no_reward_is_refused_when_it_is_loaded(
    install: Install, attribute: str, parts: list[str]
) -> None:
    install(REWARDS, "rewards", beauty=attribute)
    text = refused(lambda: load_reward("beauty"))
    assert "beauty: its entry point" in text
    for part in parts:
        assert part in text


def test_a_reward_has_the_name_of_its_entry_point(install: Install) -> None:
    install(REWARDS, "rewards", grace="Fine")
    assert refused(lambda: load_reward("grace")) == (
        "reward grace: its entry point makes one that is named beauty; give it the name grace"
    )


def test_the_packages_own_errors_stay_as_they_are(install: Install) -> None:
    source = """
from mixgrpo.errors import ConfigError, RunError

def config():
    raise ConfigError("set KEY first")

def server():
    raise RunError("the server is down")
"""
    install(source, "rewards", config="config", server="server")
    assert refused(lambda: load_reward("config")) == "set KEY first"
    with pytest.raises(RunError, match=r"^the server is down$"):
        load_reward("server")


@pytest.mark.parametrize(
    ("group", "load"),
    [("rewards", load_reward), ("models", lambda name: load_model(name, None, "cpu"))],
)
def test_an_unknown_name_says_where_names_come_from(
    group: str, load: Callable[[str], object]
) -> None:
    text = refused(lambda: load("beauty"))
    assert text.startswith(f"beauty: not a name of mixgrpo.{group}; known: ")
    assert text.endswith(
        f"packages with an entry point in the group mixgrpo.{group} (docs/extending.md)"
    )
    assert (Path(__file__).parents[3] / "docs" / "extending.md").exists()


def test_a_built_ins_name_is_refused_where_it_is_used(install: Install) -> None:
    module = install(REWARDS, "rewards", strict="fine", beauty="fine")
    text = refused(lambda: load_reward("strict"))
    assert "strict: is built in" in text
    assert f"{module}:fine" in text
    # Who uses neither is not held up.
    assert load_reward("palette").name == "palette"
    assert load_reward("beauty").name == "beauty"
    install("def load(checkpoint, device): ...", "models", scenes="load")
    assert "scenes: is built in" in refused(lambda: load_model("scenes", None, "cpu"))


def test_a_name_of_two_packages_is_refused(install: Install) -> None:
    first = install(REWARDS, "rewards", beauty="fine")
    second = install(REWARDS, "rewards", beauty="fine")
    text = refused(lambda: load_reward("beauty"))
    assert f"({first}:fine, {second}:fine)" in text


MODELS = """
from tests.mixgrpo.toy import ToyPolicy

load = ToyPolicy.load

class Empty:
    latent_shape = (3, 2, 2)
    def encode(self, prompts): ...

def empty(checkpoint, device):
    return Empty()

def nothing(checkpoint, device):
    pass

def alone(checkpoint):
    return ToyPolicy()

def named(*, checkpoint, device):
    return ToyPolicy()

def missing(checkpoint, device):
    open(checkpoint)

def refuses(checkpoint, device):
    from mixgrpo.errors import ConfigError
    raise ConfigError(f"{checkpoint}: holds another model; name one of mine")

def wanders(checkpoint, device):
    import os
    os.chdir("/")
    return ToyPolicy()
"""


def test_a_loader_gets_checkpoint_and_device(install: Install) -> None:
    install(MODELS, "models", mine="load")
    policy = load_model("mine", "7", "cpu")
    assert isinstance(policy, ToyPolicy)
    assert torch.equal(policy.inner, ToyPolicy(7).inner)


def test_a_loader_takes_the_command_nowhere(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    install("import os\nos.chdir('/')" + MODELS, "models", mine="wanders")
    load_model("mine", None, "cpu")
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("attribute", "parts"),
    [
        ("alone", [":alone must be callable with a checkpoint (or None) and a device"]),
        ("named", [":named must be callable with a checkpoint (or None) and a device"]),
        (
            "missing",
            ["mine: its entry point installed_", ":missing", "'/no/file', 'cpu'", "FileNotFound"],
        ),
        (
            "nothing",
            [
                "of NoneType without latent_shape, network, encode, velocity, decode, ",
            ],
        ),
    ],
)
def test_what_is_no_model_is_refused_when_it_is_loaded(
    install: Install, attribute: str, parts: list[str]
) -> None:
    install(MODELS, "models", mine=attribute)
    text = refused(lambda: load_model("mine", "/no/file", "cpu"))
    for part in parts:
        assert part in text


def test_all_missing_members_are_named_at_once(install: Install) -> None:
    install(MODELS, "models", mine="empty")
    assert refused(lambda: load_model("mine", None, "cpu")) == (
        "model mine: its entry point returns an object of Empty without network, velocity, decode, "
        "trainable_parameters, train_prompts, held_out_prompts; a model has all members of "
        "mixgrpo.models.protocol.Policy (docs/extending.md)"
    )


def test_a_loaders_own_sentence_stays(install: Install) -> None:
    install(MODELS, "models", mine="refuses")
    text = refused(lambda: load_model("mine", "x.bin", "cpu"))
    assert text == "x.bin: holds another model; name one of mine"
