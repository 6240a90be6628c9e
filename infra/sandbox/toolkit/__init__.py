"""Programs of ours that run inside the fence on behalf of tools."""
