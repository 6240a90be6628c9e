"""Measure Paddock, as ratios that are measured in one run: `python -m scripts.bench` runs all benchmarks."""
