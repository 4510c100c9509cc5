"""The dashboard: a local web server whose pages show studies while they are searched."""
