"""The committed reference of settings is current and explains every setting."""

from mixgrpo.reference import reference
from mixgrpo.settings.keys import known_keys
from tests.mixgrpo.toy import ROOT


def test_the_committed_reference_is_current() -> None:
    """If not: python -m mixgrpo.reference > docs/settings.md"""
    assert (ROOT / "docs" / "settings.md").read_text() == reference()


def test_every_setting_is_in_it_with_a_meaning() -> None:
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    assert sorted(row[0].strip("|` ") for row in rows) == sorted(
        key.rpartition(".")[2] for key in known_keys()
    )
    assert all(len(row) == 3 and row[2].strip(" |").endswith(".") for row in rows)
