"""LDM's own transformer for texts and layouts: token ids to a context for cross-attention (LDM, appendix E.2.1).

It has the size of BERT's and not its form: normalisation comes before attention and feed-forward, heads may be narrower than the
width divided by their number, and padding is attended to like everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.models.config import check_depth, check_fields
from latentgen.models.model import Model


@dataclass(frozen=True, kw_only=True)
class LDMBertConfig:
    """Settings of `LDMBertModel`; names and defaults are those of the folder layout's `config.json`: LDM's 1.45B text-to-image
    model. Its layout model has 8192 tokens, 92 positions, a width of 512 and 16 layers.

    Attributes:
        vocab_size: token ids.
        max_position_embeddings: longest sequence.
        d_model: width D.
        encoder_ffn_dim: width inside the feed-forward layers.
        head_dim: channels of each of the `encoder_attention_heads`.
    """

    vocab_size: int = 30522
    max_position_embeddings: int = 77
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_ffn_dim: int = 5120
    encoder_attention_heads: int = 8
    head_dim: int = 64

    def __post_init__(self) -> None:
        check_fields(self)
        check_depth(1, self.encoder_layers)


class SelfAttention(nn.Module):
    """Every token attends to every token, (B, L, D) -> (B, L, D)."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.heads, inner = config.encoder_attention_heads, config.encoder_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, inner, bias=False)
        self.k_proj = nn.Linear(config.d_model, inner, bias=False)
        self.v_proj = nn.Linear(config.d_model, inner, bias=False)
        self.out_proj = nn.Linear(inner, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a normalisation and around a shortcut."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = SelfAttention(config)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class Encoder(nn.Module):
    """Token ids (B, L) to states (B, L, D)."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids) + self.embed_positions(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)


class LDMBertModel(Model[LDMBertConfig]):
    """Token ids (B, L) to a context (B, L, D); padding is not told from anything else."""

    stem: ClassVar[str] = "model"
    config_class: ClassVar[type] = LDMBertConfig
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "activation_function": ("gelu",), "scale_embedding": (False,), "model_type": ("ldmbert",),
    }  # fmt: skip
    inert: ClassVar[frozenset[str]] = frozenset(
        {"activation_dropout", "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward",
         "classifier_dropout", "dropout", "dtype", "encoder_layerdrop", "eos_token_id", "id2label", "init_std",
         "is_encoder_decoder", "label2id", "num_hidden_layers", "output_attentions", "output_hidden_states", "pad_token_id",
         "problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache"}
    )  # fmt: skip

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__(config)
        self.model = Encoder(config)
        self.to_logits = nn.Linear(
            config.d_model, config.vocab_size
        )  # the checkpoints have it; a condition does not use it

    def forward(self, ids: Tensor) -> Tensor:
        """Embed token ids, (B, L) int64 with L of at most `max_position_embeddings`, as a context (B, L, D).

        Raises:
            ValueError: for a longer sequence.
        """
        longest = self.config.max_position_embeddings
        if ids.shape[1] > longest:
            raise ValueError(f"there are {ids.shape[1]} tokens; this network reads at most {longest}: cut them.")
        return self.model(ids)
