"""Finalists as folders that run elsewhere: plain transformers model, ONNX graphs, tokenizer, metrics, card."""
