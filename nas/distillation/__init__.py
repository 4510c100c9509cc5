"""Training a student on what its teacher says."""
