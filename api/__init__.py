"""Serve the HTTP API: authenticate, validate, write a row, commit, ring, answer."""
