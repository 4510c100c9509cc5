"""The search engine: where to begin, what to propose, what to keep to, and how no trial is lost."""
