"""Models as ONNX files: export.py (torch.export, then ONNX), file.py (its bytes, and what it says of itself),
subject.py (run by onnxruntime, as parity compares it)."""
