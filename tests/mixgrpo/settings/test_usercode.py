"""The user's code is part of a run's identity: changed code makes another run, never a mix."""

import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixgrpo.catalogue import source
from mixgrpo.errors import ConfigError, UnidentifiedError
from mixgrpo.runs.folder import claim
from mixgrpo.runs.load import load_run
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import code_record, config_hash, settings_hash
from mixgrpo.settings.usercode import read_record, user_code
from mixgrpo.training.run import run
from tests.mixgrpo import toy

RED = """
class Red:
    name = "red"

    def score(self, images, prompts):
        return images[:, 0].mean((1, 2))
"""


def uses(path: str, **more: Any) -> RunConfig:
    """A run with the reward `red` of this import path."""
    rewards = {"train": {"red": 1.0}, "held_out": (), "classes": {"red": path}}
    return RunConfig.model_validate({"rewards": rewards, **more})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def packages(place: Path) -> None:
    """A reward in a package that imports in every way there is."""
    write(
        place / "own" / "inner" / "red.py",
        "import by_name\nfrom own import sibling\nfrom .. import above\nfrom . import beside\n"
        "from .deep import thing\n"
        "def late():\n    import lazy\n    import importlib\n"
        "    return importlib.import_module('dynamic')\n" + RED,
    )
    for name in ("own/__init__", "own/inner/__init__", "own/sibling", "own/above", "by_name"):
        write(place / f"{name}.py", "x = 1\n")
    for name in ("own/inner/beside", "own/inner/not_imported", "own/inner/low/er", "lazy"):
        write(place / f"{name}.py", "x = 1\n")
    write(place / "own" / "inner" / "deep" / "__init__.py", "from by_deep.part import x as thing\n")
    write(place / "by_deep" / "part.py", "x = 1\n")  # a folder without __init__.py
    write(place / "dynamic.py", "x = 1\n")
    write(place / "unrelated.py", "x = 1\n")
    write(place / "own" / "unrelated.py", "x = 1\n")


COUNT = ["own/__init__", "own/inner/__init__", "own/sibling", "own/above", "own/inner/beside"]
COUNT += ["own/inner/not_imported", "own/inner/low/er", "own/inner/deep/__init__", "by_deep/part"]
COUNT += ["own/inner/red", "by_name", "lazy", "dynamic"]


@pytest.mark.parametrize("name", COUNT)
def test_a_changed_module_makes_another_run(place: Path, name: str) -> None:
    packages(place)
    config = uses("own.inner.red:Red")
    before, settings = config_hash(config), settings_hash(config)
    file = place / f"{name}.py"
    file.write_text(file.read_text() + "y = 2\n")
    assert config_hash(config) != before
    assert settings_hash(config) == settings
    file.unlink()
    if name != "own/inner/red":
        assert config_hash(config) != before


@pytest.mark.parametrize("name", ["own/inner/new", "own/inner/low/new", "own/late", "helper/new"])
def test_a_new_module_is_noticed_and_thousands_of_runs_read_the_code_once(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages(place)
    red = place / "own" / "inner" / "red.py"
    red.write_text("from own import late\nimport helper.new\n" + red.read_text())
    (place / "helper").mkdir()
    config = uses("own.inner.red:Red")
    before = config_hash(config)
    with monkeypatch.context() as patch:
        patch.setattr(source, "_digests", None)
        assert config_hash(config) == before
    write(place / f"{name}.py", "x = 1\n")
    assert config_hash(config) != before


@pytest.mark.parametrize("name", ["unrelated", "own/unrelated"])
def test_what_a_reward_does_not_use_does_not_count(place: Path, name: str) -> None:
    packages(place)
    before = config_hash(uses("own.inner.red:Red"))
    (place / f"{name}.py").write_text("x = 2\n")
    assert config_hash(uses("own.inner.red:Red")) == before


def test_a_flipped_sign_is_another_run_and_a_comment_is_not(place: Path) -> None:
    file = place / "red.py"
    file.write_text(RED)
    before = config_hash(uses("red:Red"))
    harmless = ["# why\n" + RED, RED.replace('"red"', '"red"  # its name'), RED + "\n\n# end\n"]
    harmless += [RED.replace("\n", "\r\n"), RED.replace("    def", "\n\n    # x\n    def")]
    for text in [*harmless, "\ufeff" + RED]:
        file.write_bytes(text.encode())
        assert config_hash(uses("red:Red")) == before, text
    seen = {before}
    real = [RED.replace("return ", "return -"), RED.replace(":, 0", ":, 1"), RED + "\nNAME = '#1'"]
    real += [RED + "\nNAME = '#2'", RED + "\nX = '''\n\n'''", RED + "\nX = '''\n'''", "class", ""]
    for text in [*real, "class Red:\r    pass # 1\r", "class Red:\r    pass # 1\r    x = 2\r"]:
        file.write_bytes(text.encode())
        seen.add(config_hash(uses("red:Red")))
    assert len(seen) == 11


def test_the_digest_of_a_source_stays(place: Path) -> None:
    """If this fails, finished runs of users with rewards or models of their own are orphaned."""
    (place / "red.py").write_text("# one\nimport os  # two\n\nX = f'{os.sep}#'\n" + RED)
    assert user_code(uses("red:Red")) == {"reward red": {"red": "40519df68e40338b"}}


def test_the_same_code_elsewhere_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for name in ("a", "b"):
        packages(tmp_path / name)
        with monkeypatch.context() as context:
            context.syspath_prepend(tmp_path / name)
            hashes.add(config_hash(uses("own.inner.red:Red")))
    assert len(hashes) == 1


def test_rewards_that_are_not_asked_do_not_count(place: Path) -> None:
    (place / "red.py").write_text(RED)
    config = RunConfig.model_validate({"rewards": {"classes": {"red": "red:Red"}}})
    assert user_code(config) == {}
    assert config_hash(config) == config_hash(RunConfig())
    assert user_code(uses("no_such_file_at_all:Red", rewards={"held_out": ()})) == {}


def test_a_module_that_is_not_there_is_named(place: Path) -> None:
    with pytest.raises(
        UnidentifiedError, match=r"rewards\.classes\.red: gone:Red: there is no module gone"
    ):
        config_hash(uses("gone:Red"))
    (place / "gone.py").write_text(RED)  # made meanwhile
    assert config_hash(uses("gone:Red"))


def test_an_optimizer_of_ones_own_counts_and_an_installed_one_does_not(place: Path) -> None:
    (place / "lion.py").write_text("class Lion: ...\n")
    config = RunConfig.model_validate({"optimizer": {"name": "lion.Lion"}})
    before = config_hash(config)
    (place / "lion.py").write_text("class Lion: x = 1\n")
    assert config_hash(config) != before
    assert user_code(RunConfig.model_validate({"optimizer": {"name": "torch.optim.SGD"}})) == {}


def test_a_module_named_like_one_of_pythons_is_ones_own(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(RED)
    script = (
        "from tests.mixgrpo.settings.test_usercode import uses, user_code\n"
        "print(list(user_code(uses('code:Red'))), user_code(uses('subprocess:Popen')))"
    )
    paths = os.pathsep.join([str(tmp_path), str(toy.ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    )
    assert result.stdout == "['reward red'] {}\n"


def install(site: Path, version: str, source: str) -> None:
    """A distribution `painter` with a reward and a model."""
    info = site / "painter-0.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: painter\nVersion: {version}\n")
    points = "[mixgrpo.rewards]\nred = painter:Red\n[mixgrpo.models]\npaint = painter:load\n"
    write(info / "entry_points.txt", points)
    write(site / "painter.py", source)


@pytest.mark.parametrize("settings", [{"rewards": {"train": {"red": 1.0}}}, {"model": "paint"}])
def test_of_an_entry_point_version_and_source_count(place: Path, settings: dict[str, Any]) -> None:
    if "model" in settings:
        settings = {"model": {"name": settings["model"]}}
    install(place, "1", RED)
    config = RunConfig.model_validate(settings)
    hashes = {config_hash(RunConfig()), config_hash(config)}
    install(place, "2", RED)
    hashes.add(config_hash(config))
    install(place, "2", RED + "x = 2\n")
    hashes.add(config_hash(config))
    assert len(hashes) == 4


@pytest.mark.parametrize(
    "call",
    [
        "import_module(name='shelf')",
        "import_module('.shelf', 'own')",
        "import_module(package='own', name='.shelf')",
    ],
)
def test_every_form_of_import_module_is_read(place: Path, call: str) -> None:
    write(place / "red.py", f"from importlib import import_module\nx = {call}\n{RED}")
    for name in ("shelf", "own/shelf", "own/__init__"):
        write(place / f"{name}.py", "x = 1\n")
    before = config_hash(uses("red:Red"))
    write(place / ("own/shelf.py" if "own" in call else "shelf.py"), "x = 2\n")
    assert config_hash(uses("red:Red")) != before


def archive(file: Path, **members: str) -> None:
    with zipfile.ZipFile(file, "w") as packed:
        for name, text in members.items():
            packed.writestr(zipfile.ZipInfo(f"{name}.py".replace("__", "/", 1)), text)


def test_a_reward_in_an_archive_and_what_it_imports_count(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(place / "lib.zip")
    packed = {"pack____init__": "", "pack__red": f"import helper\n{RED}"}
    archive(place / "lib.zip", **packed)
    write(place / "helper.py", "x = 1\n")
    hashes = {config_hash(uses("pack.red:Red"))}
    write(place / "helper.py", "x = 2\n")
    hashes.add(config_hash(uses("pack.red:Red")))
    archive(place / "lib.zip", **packed, pack__new="x = 1\n")
    hashes.add(config_hash(uses("pack.red:Red")))
    assert len(hashes) == 3


# ---- A folder belongs to the code that began it


def test_a_folder_notes_its_code_and_refuses_another(place: Path) -> None:
    folder = place / "run"
    folder.mkdir()
    (place / "helper.py").write_text("x = 1\n")
    (place / "red.py").write_text("import helper\n" + RED)
    config = uses("red:Red")
    claim(config, folder)
    assert read_record(folder) == code_record(config)
    (place / "helper.py").write_text("x = 2\n")
    claim(config, folder)  # it had not begun
    assert read_record(folder) == code_record(config)
    (folder / "eval.jsonl").write_text("{}\n")
    before = (folder / "config.yaml").read_bytes()
    (place / "helper.py").write_text("x = 3\n")
    with pytest.raises(ConfigError) as refused:
        claim(config, folder)
    assert str(refused.value) == (
        f"{folder / 'config.yaml'}: is of another run: the code of reward red (helper) changed "
        "since it began; name another folder for a new run (--out), or restore what changed to "
        "continue this one"
    )
    assert (folder / "config.yaml").read_bytes() == before
    (place / "helper.py").write_text("x = 2\n")
    claim(config, folder)


def test_a_folder_of_an_earlier_version_says_that_its_code_was_not_noted(place: Path) -> None:
    (place / "red.py").write_text(RED)
    config = uses("red:Red")
    header = f"# schema 1, run {settings_hash(config)}\n"
    claim(config, place)
    text = (place / "config.yaml").read_text()
    (place / "config.yaml").write_text(header + text.partition("\n")[2])
    (place / "code.json").unlink()
    (place / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="the code of reward red was not noted then"):
        claim(config, place)


Train = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def train(tmp_path: Path, toy_site: Path) -> Train:
    """Trains in tmp_path / "run" with a module `red` of this text in tmp_path."""
    config = toy.config().model_dump(mode="json")
    config |= {"rewards": {"train": {"red": 1.0}, "held_out": [], "classes": {"red": "red:Red"}}}
    (tmp_path / "run.yaml").write_text(json.dumps(config))

    def trained(source: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "red.py").write_text(source)
        return subprocess.run(
            [sys.executable, "-m", "mixgrpo.train", "run.yaml", "--out", "run"],
            cwd=tmp_path,
            env=os.environ | toy.environment(toy_site),
            capture_output=True,
            text=True,
            timeout=120,
        )

    return trained


def test_a_reward_that_was_fixed_does_not_go_on_from_its_checkpoint(
    train: Train, tmp_path: Path
) -> None:
    """One that fails in iteration 2, fixed with another scale: `before` of old code, `after` of
    new would be a gain that nobody made."""
    scored = "return images[:, 0].mean((1, 2))"
    failing = RED.replace(scored, "self.n = getattr(self, 'n', 0) + 1\n        " + scored)
    failing = failing.replace(
        "        return", "        if self.n > 2: raise ValueError\n        return"
    )
    failed = train(failing)
    assert failed.returncode == 1
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file() and p.parent.name != "owner"]
    kept = {p: p.read_bytes() for p in files}
    refused = train(RED.replace("return ", "return 9 * "))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "the code of reward red (red) changed since it began; name another folder" in (
        refused.stderr
    )
    assert {p: p.read_bytes() for p in kept} == kept


def test_a_run_keeps_its_name_when_its_code_is_edited_meanwhile(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    edits = "        open(__file__, 'a').write('x = 1\\n')\n        return"
    done = train(RED.replace("        return", edits))
    assert done.returncode == 0, done.stderr
    begun = (tmp_path / "run" / "config.yaml").read_text().partition("\n")[0].split()[-1]
    assert json.loads((tmp_path / "run" / "result.json").read_bytes())["hash"] == begun
    with pytest.warns(UserWarning, match=r"the code of reward red \(red\) changed since"):
        load_run(tmp_path / "run")
    assert train(RED).returncode == 2


def test_code_that_changes_while_it_is_imported_is_refused(train: Train, tmp_path: Path) -> None:
    refused = train(RED + "\nopen(__file__, 'a').write('x = 1\\n')\n")
    assert refused.returncode == 2
    assert "the code of reward red (red) changed while the run was starting" in refused.stderr
    assert not (tmp_path / "run" / "eval.jsonl").exists()


def test_a_reward_that_is_the_first_to_import_torch_is_not_said_to_hide_anything() -> None:
    code = (
        "import sys, types\n"
        "from mixgrpo.catalogue.modules import imported, imports_noted\n"
        "with imports_noted('red:Red'):\n"
        "    import torch\n"
        "    main = sys.modules['__mp_main__'] = types.ModuleType('__mp_main__')\n"
        "    main.__file__ = '/somewhere/main.py'\n"
        "assert 'torch.ops' in sys.modules\n"
        "print(imported('red:Red'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"


DYNAMIC = {
    "a changed path": "import sys\nsys.path.append({lib!r})\nimport {name}\n",
    "a computed name": "import importlib\nname = '{name}'\nimportlib.import_module(name)\n",
    "another name": "from importlib import import_module as get\nget('{name}')\n",
    "a file": "import importlib.util as u, sys\n"
    "spec = u.spec_from_file_location('{name}', {lib!r} + '/{name}.py')\n"
    "sys.modules['{name}'] = u.module_from_spec(spec)\n",
}


@pytest.mark.parametrize("how", DYNAMIC)
def test_what_only_an_import_shows_is_said(
    how: str, place: Path, toy_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, lib = f"hidden_{abs(hash(how))}", str(place / "lib")
    if "name" in how:
        monkeypatch.syspath_prepend(lib)
    write(place / "lib" / f"{name}.py", "x = 1\n")
    write(place / f"uses_{name}.py", DYNAMIC[how].format(name=name, lib=lib) + RED)
    rewards = {"train": {"red": 1.0}, "held_out": [], "classes": {"red": f"uses_{name}:Red"}}
    config = toy.config(iterations=1, rewards=rewards)
    message = (
        f"reward red: its code imports {name} .{place}/lib/{name}.py. in a way that is seen only"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.warns(UserWarning, match=message):
        run(config, place / "run")


LATE = {
    "a computed name": "importlib.import_module(name)",
    "a changed path": "sys.path.append({lib!r}); import {name}",
}
SGD = """
class SGD(torch.optim.SGD):
    def step(self, closure=None):
        {late}
        super().step()
"""


@pytest.mark.parametrize("how", LATE)
@pytest.mark.parametrize("part", ["score", "step"])
def test_what_is_imported_while_it_computes_is_said_once(
    how: str, part: str, place: Path, toy_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, lib = f"late_{part}_{how[-4:]}", str(place / "lib")
    if "name" in how:
        monkeypatch.syspath_prepend(lib)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(place / "lib" / f"{name}.py", "x = 1\n")
    late = LATE[how].format(name=name, lib=lib)
    source = RED.replace("        return", f"        {late}\n        return") + SGD.format(
        late="pass"
    )
    if part == "step":
        source = RED + SGD.format(late=late)
    begin = f"import importlib, sys, torch\nname = '{name}'\n"
    write(place / f"uses_{name}.py", begin + source)
    rewards = {"train": {"red": 1.0}, "held_out": [], "classes": {"red": f"uses_{name}:Red"}}
    optimizers = [{"name": f"uses_{name}.SGD"}] + [{}] * (part == "score")
    for number, optimizer in enumerate(optimizers):
        config = toy.config(iterations=2, rewards=rewards, optimizer=optimizer)
        planned = config_hash(config)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(config, place / f"run{number}")
        messages = [str(one.message) for one in caught if name in str(one.message)]
        whose = "reward red or model toy" + (f" or optimizer uses_{name}.SGD" if optimizer else "")
        assert [text.partition(" (")[0] for text in messages] == [
            f"{whose}: its code imports {name}"
        ]
        assert config_hash(config) == planned, "the run keeps its name"
        sys.modules.pop(name)
