"""The ground that every capability stands on: ids, errors, pages, times, names, and parsing of untrusted input."""
