"""The dashboard's pages: one module each, from a view and the studies to what its template shows."""
