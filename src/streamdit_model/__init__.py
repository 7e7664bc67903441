"""StreamDiT (arXiv 2507.03745) as a library: tensors in, tensors out."""
