"""Build uploaded archives into versions that can run."""

from workers.build.builder import BuildDependencies, VersionBuilder

__all__ = ["BuildDependencies", "VersionBuilder"]
