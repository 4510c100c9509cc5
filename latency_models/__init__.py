"""Running models on a device, timing them, and predicting the rest."""
