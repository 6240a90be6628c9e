"""Read the requests of other systems' APIs and render answers as they do: one package per API over a common one."""
