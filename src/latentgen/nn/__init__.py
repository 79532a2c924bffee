"""Layers: attention, residual blocks, up- and downsampling, embeddings. No configs and no files."""
