"""Run uploaded code in the sandbox, with its output and its gateway to models."""
