"""What is loaded beside a model's own weights: LoRA and its kin, and textual inversion. Files to changes of layers, and back."""

from latentgen.weights.adapters.deltas import Decomposed, Delta, Difference, Hadamard, Kronecker, LowRank, Scaled, Shape
from latentgen.weights.adapters.embedding import read_embedding
from latentgen.weights.adapters.kinds import adapter_title, embedding_title
from latentgen.weights.adapters.lora import LoRA, read_lora
from latentgen.weights.adapters.save import save_lora

__all__ = [
    "Decomposed",
    "Delta",
    "Difference",
    "Hadamard",
    "Kronecker",
    "LoRA",
    "LowRank",
    "Scaled",
    "Shape",
    "adapter_title",
    "embedding_title",
    "read_embedding",
    "read_lora",
    "save_lora",
]
