"""The code in the README and the pages in docs/ runs as written."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import assert_equal, largest_difference, outputs_of, train_steps
from torch import Tensor, nn

import splitgrow
from benchmarks.vision import torchvision

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
GUIDES = {
    name: (ROOT / name).read_text()
    for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
}
MOST_WHATS = 2.0
"""In 1,000 words. A noun says the same in fewer words than a clause with what or whatever."""


def whats_in(page: str) -> float:
    """How often a page says what or whatever, in 1,000 words; names of tests are none."""
    words = re.findall(r"[a-z']+", re.sub(r"`test_\w+`", "", page.lower()))
    return 1000 * sum(word in {"what", "whatever"} for word in words) / len(words)


def is_there(name: str) -> bool:
    """Whether a file, folder or module of the library or its tests has a name."""
    bases = (ROOT, ROOT / "splitgrow", ROOT / "tests")
    ends = (name, f"{name}.py", f"{name.rpartition('.')[0]}.py")
    anywhere = "/" not in name and any((ROOT / "tests").rglob(name))
    return anywhere or any((base / end).exists() for base in bases for end in ends)


def missing_in(page: str) -> list[str]:
    """The files that a page names and that are not there, and names that these do not have."""
    folders = (ROOT / "splitgrow", ROOT / "tests")
    sources = {path: path.read_text() for folder in folders for path in folder.rglob("*.py")}

    def defined(name: str, file: str = "") -> bool:
        return any(name in text for path, text in sources.items() if str(path).endswith(file))

    files = re.findall(r"`([\w.-]+/[\w./-]*|test_\w+\.py)`", page)
    names = re.findall(r"`(\w+)`(?: in | \()`([\w/]+\.py)`", page)
    tests = re.findall(r"`(test_\w+)`", page)
    return [
        *(file for file in files if not is_there(file)),
        *(name for name, file in names if not defined(name, f"/{file}")),
        *(test for test in tests if not defined(f"def {test}(")),
    ]


def code_in(page: str) -> list[str]:
    """The scripts on a page."""
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_front_door_is_small() -> None:
    assert len(README.encode()) <= 8 * 1024


@pytest.mark.parametrize("name", ["README.md", *PAGES, *GUIDES])
def test_pages_name_things_instead_of_asking_what_they_are(name: str) -> None:
    page = {"README.md": README, **PAGES, **GUIDES}[name]
    assert whats_in(page) <= MOST_WHATS


def test_control_the_count_sees_both_words_and_no_others() -> None:
    assert whats_in("Whatever grows, whatnot stays: what?") == 400 > MOST_WHATS


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_files_and_tests_that_a_guide_names_are_there(name: str) -> None:
    assert missing_in(GUIDES[name]) == []


def test_files_that_the_page_of_the_inside_names_are_there() -> None:
    assert missing_in(PAGES["internals.md"]) == []


def test_control_files_and_names_that_are_missing_are_found() -> None:
    there = "`deploy/passes`, `tests/demos/`, `PASSES` in `deploy/passes.py`"
    missing = "`tests/no.py`, `test_no.py`, `deploy/no`, `MISSING` (`deploy/passes.py`), `test_no`"
    rest = ["deploy/no", "MISSING", "test_no"]
    assert missing_in(f"{there}, {missing}") == ["tests/no.py", "test_no.py", *rest]


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_links_lead_to_files_that_are_there(name: str) -> None:
    folder = ROOT if name == "README.md" else (DOCS / name).parent
    text = README if name == "README.md" else PAGES[name]
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose)
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_page_is_in_the_navigation_and_the_front_door_leads_there() -> None:
    navigation = (DOCS / "site" / "mkdocs.yml").read_text()
    listed = re.findall(r": ([\w/]+\.md)$", navigation, re.MULTILINE)
    assert sorted(name for name in listed if not name.startswith("project/")) == sorted(PAGES)
    assert "docs/index.md" in README


@pytest.mark.zoo
@pytest.mark.slow
def test_the_first_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", torchvision())
    x = torch.randn(2, 3, 64, 64)
    seen: list[Any] = []

    def train(model: Any, optimizer: torch.optim.Optimizer) -> None:
        if not seen:
            train_steps(model, (x,), optimizer, steps=1)
            seen.append(outputs_of(model.eval(), x))
            return
        assert_equal(outputs_of(model, x), seen[0])
        old = model.layer1[0].conv1[0].weight
        before = old.detach().clone()
        train_steps(model, (x,), optimizer, steps=2)
        assert largest_difference(old, before) > 1e-5
        assert largest_difference(outputs_of(model, x), seen[0]) > 1e-3

    names: dict[str, Any] = {"train": train}
    exec(code_in(README)[0], names)
    assert names["model"].layers[1].width == 80
    assert isinstance(names["deploy"], torch.fx.GraphModule)


class Small(nn.Module):
    """A classifier in the place of a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 9, stride=56), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


@pytest.mark.slow
def test_the_example_of_learning_without_forgetting_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)

    def data() -> tuple[Tensor, Tensor]:
        return torch.randn(12, 3, 224, 224, generator=generator), torch.arange(12) % 2

    torchvision = SimpleNamespace(models=SimpleNamespace(resnet18=Small))
    tasks = [("birds", 2, data(), data()), ("fish", 2, data(), data())]
    images = tasks[0][3][0]
    names = {"torch": torch, "torchvision": torchvision, "my_tasks": tasks, "images": images}
    exec(code_in(README)[1].replace("epochs=20", "epochs=1"), names)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.zoo
@pytest.mark.slow
def test_the_example_of_insertions_runs_and_changes_nothing() -> None:
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    model = torchvision().models.resnet18(weights=None).double().eval()
    model = splitgrow.growable(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = outputs_of(model, x)
    exec(code_in(PAGES["insertion.md"])[0], {"model": model, "optimizer": optimizer})
    assert len(splitgrow.handle(model).edits) == 4
    assert_equal(outputs_of(model, x), before)


def test_the_sessions_show_what_they_print() -> None:
    sessions = [
        session
        for page in (README, *PAGES.values(), GUIDES["CONTRIBUTING.md"])
        for session in re.findall(r"```pycon\n(.*?)```", page, re.DOTALL)
    ]
    assert sessions
    for number, text in enumerate(sessions):
        names = {"torch": torch, "splitgrow": splitgrow}
        session = doctest.DocTestParser().get_doctest(text, names, f"README {number}", None, 0)
        found = doctest.DocTestRunner().run(session)
        assert found.attempted > 5
        assert not found.failed


def test_both_commands_pin_what_they_install_and_end_in_what_they_run() -> None:
    commands = re.findall(r"```bash\n(python3 .*)\n```", README)
    assert [command.rsplit("&& ", 1)[1] for command in commands] == ["splitgrow demo", "pytest"]
    assert all("pip install -c constraints.txt" in command for command in commands)


def test_the_model_counts_are_those_that_are_tested() -> None:
    counts = re.findall(r"(\w+) (\d+) of (?:\d+ layers|(\d+))", PAGES["can_grow.md"])
    stated = {name: int(count) for name, count, _ in counts}
    source = (Path(__file__).parent / "test_zoo.py").read_text()
    tested = dict(re.findall(r'"(\w+)": \((\d+), \d+\)', source))
    assert stated == {name: int(count) for name, count in tested.items()}
