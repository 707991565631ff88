"""The README agrees with the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from syncd import errors

ROOT = Path(__file__).parents[2]


def error_rows(tree: type[errors.SyncdError] = errors.SyncdError) -> Iterator[str]:
    for error in tree.__subclasses__():
        if error.__module__ == "syncd.errors":
            meaning = (error.__doc__ or "").strip().splitlines()[0].replace("|", "\\|")
            yield f"| `{error.code}` | {error.exit_status} | {meaning} |"
            yield from error_rows(error)


def test_every_error_has_its_row_in_the_readme():
    readme = (ROOT / "README.md").read_text().splitlines()
    assert [row for row in error_rows() if row not in readme] == []


def test_the_readme_names_every_direct_dependency():
    import tomllib

    readme = (ROOT / "README.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name = requirement.split(">")[0].split("[")[0]
        assert name in readme, name
