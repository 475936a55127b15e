"""From a finished run to a release: what it holds, and where it comes from."""
