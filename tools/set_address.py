"""Set the repository's address in pyproject.toml, the README, and every notebook's badge and set-up cell.

python tools/set_address.py https://github.com/NAME/REPOSITORY
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def current():
    """The address that stands in pyproject.toml."""
    return re.search(r'(?m)^Repository = "(https://github\.com/[^"]+)"', (ROOT / "pyproject.toml").read_text())[1]


def main(address):
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        sys.exit(f"expected an address like https://github.com/name/repository, got {address}")
    old, new = (a.removeprefix("https://github.com/") for a in (current(), address))
    files = [ROOT / name for name in ("pyproject.toml", "README.md", "CITATION.cff")]
    for path in [*files, *(ROOT / "notebooks").glob("*.ipynb")]:
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    print(f"{old} -> {new}")


if __name__ == "__main__":
    main(*sys.argv[1:] or sys.exit(__doc__))
