"""Share fixtures between the contract tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def readable_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty folder that a sandbox's user can read."""
    folder = tmp_path_factory.mktemp("code")
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    return folder
