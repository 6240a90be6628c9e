"""The sandbox: the fence around untrusted code, the adapter that runs code in it, and the guest inside."""
