"""What is true of accounts, agents and executions, with no knowledge of HTTP, SQL or Redis."""
