"""Scripts to copy are short and use public names alone; documentation names files that exist."""

import ast
import re
from pathlib import Path

import pytest

import docvit
import kd

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
PAGES = [
    page for folder in ("", "docvit/weights", "examples/benchmarks/results") for page in (ROOT / folder).glob("*.md")
]
PUBLIC = {"docvit": docvit, "kd": kd}


def test_there_are_at_most_ten_scripts_to_copy():
    assert 0 < len(SCRIPTS) <= 10


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_to_copy_is_short_and_uses_public_names_alone(script):
    text = script.read_text()
    assert len(text.splitlines()) <= 40
    used = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    for node in used:
        if isinstance(node.value, ast.Name) and node.value.id in PUBLIC:
            assert node.attr in PUBLIC[node.value.id].__all__
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in PUBLIC
        if isinstance(node, ast.Import):
            assert all(name.name in PUBLIC for name in node.names if name.name.partition(".")[0] in PUBLIC)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_commands_of_a_page_name_files_that_exist(page):
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    text = re.sub(r"\| `examples/.*", "", text)  # the changelog's table of what lies elsewhere now
    scripts = re.findall(r"(?<![\w/])examples/[\w/]+\.(?:py|png|sh)", text)
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_anchors_name_headings_that_exist():
    for page in PAGES:
        for file, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            if "://" not in file:
                target = (page.parent / file if file else page).read_text()
                headings = re.findall(r"^#+ (.*)$", target, re.MULTILINE)
                assert anchor in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings], (
                    page,
                    anchor,
                )


def test_the_readme_is_short_and_has_one_command_for_each_marker():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    for marker in ("run", "test"):
        assert len(re.findall(rf"<!-- {marker} -->\n```sh\n[^\n]+\n```\n", text)) == 1
