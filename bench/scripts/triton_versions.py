"""The Triton kernels under every version of Triton that they are for: interpreted, and compiled ahead of time.

    python bench/scripts/triton_versions.py [3.2.0 3.6.0 ...] [--folder DIR] [--all-targets]

Installs each version with pip into a folder of its own, which goes in front of this environment's packages, and runs
tests/kernels/test_kernels.py and test_launches.py there. Needs no GPU. --all-targets compiles every shape class
for every GPU, and not for one of them each. A version takes some 6 minutes on an idle core, with --all-targets 15.
Prints a row of a table a version; the tests' reports stay in the folder. Exit code 1 where a test fails.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

VERSIONS = ("3.2.0", "3.3.1", "3.4.0", "3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0")
# up to 3.6 the interpreter takes an array of one element for a number, which NumPy 2.4 no longer does
OLD_NUMPY = ("3.2.", "3.3.", "3.4.", "3.5.", "3.6.")
ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {  # heading: what the names of its tests begin with
    "interpreted": "test_in_the_interpreter",
    **{
        name: f"test_every_kernel_compiles_for_a_gpu_that_is_not_here[{name}]"
        for name in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "gfx942")
    },
    "matrix cores": "test_matrix_cores_are_used",
    "launches": "test_a_capture_compiles_nothing",
    "all": "test_",
}

MODULES = ("tests/kernels/test_kernels.py", "tests/kernels/test_launches.py")


def install(version: str, folder: Path) -> None:
    """The version of Triton, and a NumPy that suits it, into the folder; nothing where they are there already."""
    packages = [f"triton=={version}", *(["numpy<2.4"] if version.startswith(OLD_NUMPY) else [])]
    if not (folder / "triton").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, *packages], check=True)


def run_tests(folder: Path, report: Path, all_targets: bool, selection: str) -> None:
    """Run the tests with the folder's packages in front; their outcomes go to ``report`` as JUnit has them."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests"))),
        "TRITON_CACHE_DIR": str(folder / "cache"),
        "PXFAST_TEST_ALL_TARGETS": "1" if all_targets else "",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=3600"]
    command += [f"--junitxml={report}", "-k", selection, *MODULES]
    report.unlink(missing_ok=True)
    with report.with_suffix(".log").open("w") as log:
        subprocess.run(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def outcomes(report: Path) -> dict[str, str]:
    """By test: 'passed', 'skipped' or 'failed'."""
    found = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        name = case.attrib["name"]
        found[name] = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
    return found


def cell(found: dict[str, str], beginning: str) -> str:
    counts = collections.Counter(outcome for name, outcome in found.items() if name.startswith(beginning))
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "skipped", "failed") if counts[outcome])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pxfast-triton")
    parser.add_argument("--all-targets", action="store_true")
    parser.add_argument("-k", dest="selection", default="test", help="of the tests, as pytest takes it")
    options = parser.parse_args()
    print(f"| Triton | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}", flush=True)
    failed = False
    for version in options.versions:
        folder = (options.folder / version).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        install(version, folder)
        report = folder / "report.xml"
        run_tests(folder, report, options.all_targets, options.selection)
        if report.is_file():
            found = outcomes(report)
            cells = [cell(found, beginning) or "-" for beginning in COLUMNS.values()]
        else:
            found, cells = {}, ["the process died"] * len(COLUMNS)
        failed = failed or not found or "failed" in found.values()
        print(f"| {version} | {' | '.join(cells)} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
