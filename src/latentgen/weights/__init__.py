"""Files to tensors and back: safe reading, model folders, shards, strict filling, key maps, the Hub."""

from latentgen.weights.errors import WeightsError

__all__ = ["WeightsError"]
