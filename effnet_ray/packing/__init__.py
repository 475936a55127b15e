"""From any source of labelled images to shards and a manifest."""
