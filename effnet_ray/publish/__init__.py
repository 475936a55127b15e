"""From a finished run to a release: files, model card, provenance, test score."""
