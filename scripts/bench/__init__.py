"""The benchmarks: ratios measured in one run, on this machine, with every part on it. Nothing is asserted."""
