"""Build uploaded archives into versions that can run."""
