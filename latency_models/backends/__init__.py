"""Runtimes behind one method: `compile(model, inputs) -> run`."""
