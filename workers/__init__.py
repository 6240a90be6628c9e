"""Do the work that rows ask for: claim a row, work with no transaction open, settle the row."""
