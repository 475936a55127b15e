"""What people do with a release: evaluate it, look at its mistakes."""
