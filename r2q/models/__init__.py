"""Models: which layers are quantized, how packed layers look in a model and on disk, how both are loaded."""
