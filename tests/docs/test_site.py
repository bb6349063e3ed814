"""The pages build without a warning into a site that asks no network for anything."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.docs.commands import ROOT

LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "latex2mathml"):
        pytest.importorskip(package, reason="the site is built with `pip install -e '.[docs]'`")
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", *("mkdocs", "build", "--strict"), "--site-dir", str(place)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return place


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values.get(LOADED.get(tag, ""), "") or "")


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}
    for page in site.rglob("*.html"):
        loads = _Page(page.read_text(encoding="utf-8")).loads
        assert not [place for place in loads if re.match(r"(https?:)?//", place)], page
    styles = [css.read_text(encoding="utf-8") for css in site.rglob("*.css")]
    assert not re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", "".join(styles))


def test_no_source_of_the_hook_is_published(site: Path) -> None:
    assert not list(site.rglob("*.py"))


def test_formulas_become_mathml_of_which_no_command_is_left_over(site: Path) -> None:
    text = (site / "mathematics.html").read_text(encoding="utf-8")
    formulas = re.findall(r"<math .*?</math>", text, re.DOTALL)
    source = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    assert len(formulas) == source.count("```math") > 10
    for formula in formulas:
        shown = "".join(ET.fromstring(formula).itertext())
        assert shown
        # What the converter does not know it leaves as it is.
        assert not re.search(r"\\|&|begin|frac", shown), shown


def test_all_pages_are_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = [page for part in nav for pages in part.values() for page in pages]
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))
