"""Describe the fence to a fork server."""

import os
from pathlib import Path
from typing import Any, Final

from infra.sandbox import seccomp
from infra.sandbox.fence import (
    EMPTY_FILES,
    EMPTY_FOLDERS,
    MEMORY_FOLDERS,
    NICE_INCREMENT,
    Fence,
    find_interpreter_root,
    find_stage_folder,
    list_guest_mounts,
    list_python_links,
    list_system_mounts,
)

_GUEST_FOLDER: Final = Path(__file__).parents[1] / "guest"


def build_configuration(fence: Fence) -> dict[str, Any]:
    """Return what a server must know of the fence, as JSON values. `SlotFence` reads it."""
    root = find_interpreter_root()
    own_folders = ["/usr", *([root] if root is not None else [])]
    mounts = [*list_system_mounts(fence), *list_python_links()]
    mounts += [("--ro-bind", mount.source, mount.target) for mount in list_guest_mounts(fence)]
    return {
        "stage": find_stage_folder(),
        "without": sorted(fence.without),
        "as_root": os.geteuid() == 0,
        "system": mounts,
        "kept_read_only": own_folders,
        "empty_folders": [folder for folder in EMPTY_FOLDERS if os.path.isdir(folder)],
        "empty_files": [file for file in EMPTY_FILES if os.path.exists(file)],
        "sizes": MEMORY_FOLDERS,
        "nice": NICE_INCREMENT,
        "filters": {
            "plain": seccomp.build_filter().hex(),
            "sockets": seccomp.build_filter(has_network=True).hex(),
        },
        "guest": str(_GUEST_FOLDER / "main.py"),
    }
