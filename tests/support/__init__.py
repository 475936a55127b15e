"""What several tests share: servers, data, releases, runs in plain processes."""
