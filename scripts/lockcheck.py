"""Check that lock files have a hash for every package, and that no file of the repository names a package host."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

LOCK_FILES: Final = (
    "requirements.lock",
    "requirements-runtime.lock",
    "requirements-uv.lock",
    "tests/generated_clients/requirements.lock",
)
# Written in halves, so that this file does not contain the hosts that it searches for.
PACKAGE_HOSTS: Final = tuple(
    "".join(parts)
    for parts in (
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("registry.", "npmjs"),
        ("deb.", "debian.org"),
        ("archive.", "ubuntu.com"),
    )
)


def find_problems() -> list[str]:
    """Return one line per problem."""
    problems = []
    for name in LOCK_FILES:
        text = Path(name).read_text()
        if re.search(r"https?://|--(extra-)?index-url|--find-links", text):
            problems.append(f"{name}: names a host or an index")
        for block in re.split(r"\n(?=\S)", text):
            if re.match(r"[A-Za-z0-9._-]+(\[[^\]]*\])?==", block) and "--hash=sha256:" not in block:
                problems.append(f"{name}: {block.split()[0]} has no hash")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    for file in filter(None, listed.split("\0")):
        path = Path(file)
        if path.is_file():
            text = path.read_text(errors="replace")
            problems += [f"{file}: names the package host {host}" for host in PACKAGE_HOSTS if host in text]
    return problems


def main() -> None:
    """Print the problems. The exit status is 1 if there are any."""
    problems = find_problems()
    for line in problems:
        print(line)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
