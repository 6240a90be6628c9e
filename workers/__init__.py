"""The hands: jobs that claim a row, work with no transaction open, and settle it."""
