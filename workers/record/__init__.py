"""Store records: artifact bodies, evaluation scores, statistics, and exported traces."""
