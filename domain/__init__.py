"""Define the rules of accounts, agents and executions, with no knowledge of HTTP, SQL or Redis."""
