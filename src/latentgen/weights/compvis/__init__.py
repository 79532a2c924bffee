"""The layout of single files: CompVis' and Stability's checkpoints, as tables that are read in both directions."""
