"""Data sets, and what models are to do on them."""
