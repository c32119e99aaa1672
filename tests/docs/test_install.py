"""How to install: what pages and error messages say is what works."""

import re

import pytest
from places import ROOT

from nestedseg.base.extras import install_command, require

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
EXTRAS = {*re.findall(r"^(\w+) = \[", PROJECT.partition("optional-dependencies]")[2], re.MULTILINE)}
OURS = re.compile(r'pip install (?:-e |--editable )?("?\.[\w\[\],]*"?|"?nestedseg\S*)')


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_installs_from_a_clone_and_names_extras_that_exist(page):
    for target in OURS.findall(page.read_text(encoding="utf-8")):
        command = f"pip install {target}"
        extras = re.search(r"\[(.*)\]", target)
        assert command == install_command(extras and extras[1])
        assert not extras or {*extras[1].split(",")} <= EXTRAS


def test_the_readme_says_how_to_install():
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("-e ", "")
    assert install_command() in text and install_command("train") in text


def test_a_missing_package_is_an_error_that_gives_the_command():
    with pytest.raises(ImportError, match=r"'no_such_package'.*'train'") as error:
        require("no_such_package")
    assert install_command("train") in str(error.value)
