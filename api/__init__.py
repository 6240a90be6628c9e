"""The thin front: authenticate, validate, write a row, commit, ring, answer."""
