"""Suggest what to change on a host that cannot isolate code."""

import os
from pathlib import Path


def find_isolation_hint() -> str:
    """Return a sentence that names the setting at fault, as far as this process can see it; empty otherwise."""
    if _read_setting("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "Allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1"
    if _read_setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "Allow user namespaces: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    if _read_setting("/proc/sys/user/max_user_namespaces") == "0":
        return "Allow user namespaces: sysctl -w user.max_user_namespaces=10000"
    if Path("/.dockerenv").exists():
        return (
            "Start the container with: "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
            + (" --cap-add SYS_ADMIN --cap-add SYS_PTRACE --cap-add NET_ADMIN" if os.geteuid() == 0 else "")
        )
    return ""


def _read_setting(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
