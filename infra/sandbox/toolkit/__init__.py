"""Provide our own programs that run inside the fence on behalf of tools."""
