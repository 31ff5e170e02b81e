"""Models that are an ONNX file and a YAML: what the YAML declares, done with onnxruntime and numpy."""
