"""Build the wheel and the source distribution, and check what is in them.

    python scripts/check_package.py

Needs hatchling (extra ``dev``) and git; touches nothing in the project. Exit code 1: something is
wrong, and the message says what.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 2 * 10**6
PAGE = """\
from trt_native.page.content import Page
from trt_native.page.graph import Graph
from trt_native.page.render import render
print(render(Page(title="t", kind="k", graphs=[Graph("g", (), (), (), ())])))
"""


def main() -> None:
    """Check the files of both, the wheel that the source distribution makes, and that it runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, wheel = build(ROOT, folder, "sdist"), build(ROOT, folder, "wheel")
        for file in (source, wheel):
            check(file.stat().st_size <= MOST_BYTES, f"{file.name}: more than {MOST_BYTES} bytes")
        tracked = run("git", "ls-files", "trt_native", cwd=ROOT).splitlines()
        check(modules(wheel) == sorted(tracked), f"{wheel.name} lacks files, or has others")
        with tarfile.open(source) as archive:
            archive.extractall(folder / "source", filter="data")
        (unpacked,) = (folder / "source").iterdir()
        again = build(unpacked, folder / "again", "wheel")
        check(modules(again) == modules(wheel), f"{source.name} makes another wheel")
        with zipfile.ZipFile(again) as archive:
            archive.extractall(folder / "installed")  # noqa: S202  # it was built here
        version = run(sys.executable, "-m", "trt_native", "--version", cwd=folder / "installed")
        check(version.split()[-1] in wheel.name, f"{wheel.name}: the program says {version}")
        page = run(sys.executable, "-c", PAGE, cwd=folder / "installed")
        check("</html>" in page, f"{wheel.name}: cannot write a page")
        sizes = ", ".join(f"{file.name} {file.stat().st_size:,} bytes" for file in (source, wheel))
        print(f"package: {sizes}")


def build(root: Path, folder: Path, target: str) -> Path:
    """Build a wheel or a source distribution of a folder; return the file."""
    command = (sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder))
    run(*command, cwd=root)
    (built,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


def modules(wheel: Path) -> list[str]:
    """The files of a wheel but for its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(n for n in archive.namelist() if ".dist-info/" not in n)


def run(*command: str, cwd: Path) -> str:
    """Run a command; return what it prints."""
    return subprocess.run(command, cwd=cwd, check=True, text=True, stdout=subprocess.PIPE).stdout


def check(holds: bool, problem: str) -> None:
    """End with an error where something does not hold."""
    if not holds:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
