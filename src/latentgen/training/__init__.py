"""Training of both stages: the same networks and mathematics as everywhere, plus gradients."""
