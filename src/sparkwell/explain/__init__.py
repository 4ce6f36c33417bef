"""What an error message or an instruction means on NVIDIA GPUs: cause and cure."""
