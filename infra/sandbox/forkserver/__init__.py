"""Sandboxes by fork: a small trusted server that makes each slot by fork and builds the same fence around it."""
