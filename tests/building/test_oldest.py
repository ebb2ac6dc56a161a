"""The oldest releases that pyproject.toml allows are those that the tests are run with."""

import re
import sys

from support.helpers import SOURCE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXTRAS = ("attacks", "evaluate", "hub")  # whose oldest releases go together; the page's libraries want newer ones


def test_the_tested_releases_are_the_oldest_allowed() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    triton = [each for each in extras["test"] if each.startswith("triton")]
    allowed = dict(
        re.fullmatch(r"([\w-]+)>=([\d.]+)", each.partition(";")[0].strip()).groups()
        for each in (*project["dependencies"], *triton, *(each for name in EXTRAS for each in extras[name]))
    )
    lines = (SOURCE / ".ci" / "oldest.txt").read_text().splitlines()
    assert dict(line.split("==") for line in lines if not line.startswith("#")) == allowed
