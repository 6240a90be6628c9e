"""Keep folders of a machine's workers on disk: bundles of versions and installed environments."""

from infra.build_cache.bundles import BUNDLE_LIMITS, BundleCache
from infra.build_cache.environments import EnvironmentCache
from infra.build_cache.folders import FolderCache, count_disk_bytes, count_file_bytes

__all__ = [
    "BUNDLE_LIMITS",
    "BundleCache",
    "EnvironmentCache",
    "FolderCache",
    "count_disk_bytes",
    "count_file_bytes",
]
