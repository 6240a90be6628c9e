"""Sources of agents that several suites deploy."""

# Say hello to a host, and return its words, or the name of the error.
CONNECTING_SOURCE = """
import socket
def attempt(host, port):
    try:
        with socket.create_connection((host, port), 10) as s:
            s.sendall(b"hello")
            return s.recv(100).decode() or "closed"
    except OSError as error:
        return type(error).__name__
"""
