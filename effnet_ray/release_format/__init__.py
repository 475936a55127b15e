"""The files of a release: their names, config.json and release.json."""
