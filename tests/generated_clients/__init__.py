"""Clients that generators make of the OpenAPI document: they are whole, and work."""
