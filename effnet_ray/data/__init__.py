"""What a data set is, in which order it is read, and how images become batches."""
