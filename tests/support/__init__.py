"""Fakes, builders, oracles and clients that several test suites share."""
