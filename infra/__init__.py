"""The outside: databases, object storage, the sandbox, and how they are wired together."""
