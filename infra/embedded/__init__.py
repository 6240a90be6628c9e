"""Postgres, Valkey and SeaweedFS as child processes, from their wheels: for a laptop and for the tests."""
