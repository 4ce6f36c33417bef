"""Model folders: their configuration, their tensors, their quantization, where to find them."""
