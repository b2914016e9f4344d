"""README.md and docs: links lead to files, and every function that README names stands in the file it names."""

import ast
import re

import pytest
from conftest import ROOT

from nanoft import config

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = re.compile(r"((?:`[\w.]+`(?:, )?)+)[^`|]*? in \[[^]]+\]\(([^)]+\.py)\)")


def defined(path):
    """The functions and classes of a Python file, methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in getattr(node, "body", ()) if hasattr(part, "name")}
    return names


def test_readme_names_functions_that_exist():
    found = [(name, path) for names, path in NAMED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
             for name in re.findall(r"`([\w.]+)`", names)]
    assert len(found) >= 20
    assert [(name, path) for name, path in found if name not in defined(ROOT / path)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r'\]\(([^)#]+)\)|<img src="([^"]+)"', text)
    missing = [link for pair in links for link in pair if link and "://" not in link
               and not (page.parent / link).exists()]
    assert missing == []


def test_every_config_named_exists_and_its_start_is_made():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = {name for name in re.findall(r"config/[a-z]\w*\.py", text) if not (ROOT / name).exists()}
    assert missing == set()
    text += "".join(path.read_text(encoding="utf-8") for path in (ROOT / "config").glob("*.py"))
    configs = {path.name: config.read_file(str(path)) for path in (ROOT / "config").glob("*.py")}
    made = {values["out_dir"] for values in configs.values()}
    for name, start in [(name, values.get("init_from", "")) for name, values in configs.items()]:
        assert not start.startswith("out/") or start in made or re.search(rf"--out(_dir)?={start}\b", text), name
