"""Advance plans, one short transaction at a time."""
