"""Plans: what crews and workflows become when they are started."""
