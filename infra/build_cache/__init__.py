"""Folders that workers of one machine keep on disk: bundles of versions and installed environments."""
