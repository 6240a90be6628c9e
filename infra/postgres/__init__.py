"""Postgres, the truth: one repository per capability, each beside the row class it reads and writes."""
