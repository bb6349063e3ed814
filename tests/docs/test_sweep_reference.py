"""The committed reference of the sweep file is that of the code, and says something about each."""

from harness.reference import reference
from harness.study.paper import TABLES
from harness.study.sweepfile import Profile, SweepFile
from harness.study.views import DEFAULT, VIEWS
from mixgrpo.settings.probes import PROBES
from tests.docs.commands import ROOT


def rows(heading: str) -> dict[str, list[str]]:
    part = reference().split(f"## {heading}\n")[1].split("\n## ")[0]
    found = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in found}


def test_the_committed_reference_is_current() -> None:
    """If not: python -m harness.reference > docs/sweep-reference.md"""
    committed = (ROOT / "docs" / "sweep-reference.md").read_text(encoding="utf-8")
    assert committed == reference()


def test_every_key_is_in_it_with_a_form_and_a_meaning() -> None:
    found = rows("Keys of the file")
    assert found.keys() == SweepFile.model_fields.keys()
    for key, row in found.items():
        assert len(row) == 2, key
        assert row[1].endswith("."), key


def test_what_must_be_given_comes_first() -> None:
    found = rows("Keys of the file")
    assert list(found)[:2] == ["name", "question"]
    assert [key for key, row in found.items() if "must be given" in row[0]] == list(found)[:2]


def test_the_keys_of_a_profile_are_those_it_may_have() -> None:
    part = reference().split("## Keys of a profile\n\n")[1].split("\n\n")[0]
    assert [key.strip("`.") for key in part.split(", ")] == list(Profile.model_fields)


def test_every_view_and_probe_is_named_with_what_it_is_about() -> None:
    found = rows("Views")
    assert found.keys() == VIEWS.keys()
    assert all(row[1].endswith(".") for row in found.values())
    assert [name for name in found if found[name][0] == "on every page"] == list(DEFAULT)
    options = rows("Probes")
    for name, probe in PROBES.items():
        assert f"\n### {name}\n" in reference()
        for key in probe.options.model_fields:
            assert options[key][1].endswith("."), (name, key)


def test_every_published_table_is_named_with_its_rows() -> None:
    found = rows("Published tables")
    assert found.keys() == TABLES.keys()
    assert all(f"`{key}`" in found[name][1] for name in TABLES for key in TABLES[name].rows)
