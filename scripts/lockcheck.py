"""The lock files carry hashes for every package and name no host; nor does any other file of the repository."""

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
# Written in halves, so that this file does not name what it looks for.
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
    """What is wrong, a line each."""
    found = []
    for name in LOCK_FILES:
        text = Path(name).read_text()
        if re.search(r"https?://|--(extra-)?index-url|--find-links", text):
            found.append(f"{name}: names a host or an index")
        for block in re.split(r"\n(?=\S)", text):
            if re.match(r"[A-Za-z0-9._-]+(\[[^\]]*\])?==", block) and "--hash=sha256:" not in block:
                found.append(f"{name}: {block.split()[0]} has no hash")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    for file in filter(None, listed.split("\0")):
        path = Path(file)
        if path.is_file():
            text = path.read_text(errors="replace")
            found += [f"{file}: names the package host {host}" for host in PACKAGE_HOSTS if host in text]
    return found


def main() -> None:
    """Print what is wrong, and end with a status that says so."""
    found = find_problems()
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
