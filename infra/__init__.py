"""Connect databases, object storage and the sandbox, and wire them together."""
