"""What a model needs on a GPU and how fast it can be there, from its config alone; no torch."""
