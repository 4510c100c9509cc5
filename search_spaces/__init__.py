"""What can vary in a transformer, the elastic supernet of it, and plain extraction."""
