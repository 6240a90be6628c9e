"""Keep the source of truth in Postgres: one repository per capability, each beside its row class."""
