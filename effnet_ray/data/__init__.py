"""From images to planned batches: manifest · pack · images · order · ingest."""
