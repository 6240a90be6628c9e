"""Provide what every capability builds on: ids, errors, pages, times, names, and parsing of untrusted input."""
