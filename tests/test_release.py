"""What users are given: the wheel and the sdist as they are checked, and the papers beside them."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

import yaml
from oldest import oldest_torch
from release import sdist_problems, wheel_problems

ROOT = Path(__file__).parent.parent
TRACKED = ["README.md", "splitgrow/__init__.py", "splitgrow/py.typed", "tests/test_laws.py"]
INFO = ["METADATA", "entry_points.txt", "licenses/LICENSE"]
WHEEL = [*TRACKED[1:3], *(f"splitgrow-1.dist-info/{name}" for name in INFO)]
SDIST = [f"splitgrow-1/{name}" for name in [*TRACKED, "PKG-INFO"]]
METADATA = "Requires-Python: >=3.10\n\nGrow any PyTorch model while it trains."


def test_a_wheel_of_the_library_alone_and_an_sdist_of_the_repository_are_as_they_should_be() -> (
    None
):
    assert wheel_problems(WHEEL, METADATA, TRACKED) == []
    assert sdist_problems(SDIST, TRACKED) == []


def test_each_file_that_a_wheel_lacks_is_named() -> None:
    told = [
        wheel_problems([one for one in WHEEL if one != name], METADATA, TRACKED) for name in WHEEL
    ]
    missing = [(name in TRACKED) or not name.endswith("METADATA") for name in WHEEL]
    assert [bool(problems) for problems in told] == missing
    assert "wheel: splitgrow/__init__.py is missing" in told[0]


def test_files_that_a_wheel_should_not_have_are_named() -> None:
    told = wheel_problems([*WHEEL, "tests/test_laws.py"], METADATA, TRACKED)
    assert told == ["wheel: tests/test_laws.py is not the library's"]


def test_metadata_without_a_page_or_a_python_is_named() -> None:
    told = wheel_problems(WHEEL, "Name: splitgrow\n\n", TRACKED)
    assert told == ["wheel: the page of the index is missing", "wheel: its Python is missing"]


def test_an_sdist_that_differs_from_the_repository_is_named() -> None:
    told = sdist_problems([*SDIST[1:], "splitgrow-1/runs/big.pt"], TRACKED)
    assert told == ["sdist: README.md is missing", "sdist: runs/big.pt is not in the repository"]


def test_the_citation_names_the_version_and_the_license_of_the_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    told = metadata("splitgrow")
    assert cited["version"] == told["Version"]
    assert cited["license"] == told["License-Expression"]
    assert sorted(cited["keywords"]) == sorted(told["Keywords"].split(","))
    # The keys that format 1.2.0 asks for, and the kinds of its authors.
    assert cited["cff-version"] == "1.2.0"
    assert all(isinstance(cited[key], str) and cited[key] for key in ("message", "title"))
    assert all("name" in author or "family-names" in author for author in cited["authors"])


def test_each_issue_template_says_what_it_is_for() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    heads = [yaml.safe_load(path.read_text().split("---\n")[1]) for path in templates]
    assert len(heads) >= 3
    assert all(head["name"] and head["about"] for head in heads)


def test_no_page_gives_an_address_that_nobody_reads() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md"), ROOT / "CITATION.cff"]
    assert [path.name for path in pages if re.search(r"\w@\w+\.\w", path.read_text())] == []


def test_the_oldest_torch_is_the_bound_of_the_project() -> None:
    assert oldest_torch('dependencies = ["click>=8.1", "torch>=2.4"]') == "2.4.*"
    assert oldest_torch('dependencies = ["torch>=2.4.1"]') == "2.4.1"
