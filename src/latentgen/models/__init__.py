"""Networks, one per file, each beside its config."""

from latentgen.models.autoencoder_kl import AutoencoderConfig, AutoencoderKL
from latentgen.models.conditioners import ClassEmbedder, ClassEmbedderConfig, SpatialRescaler, SpatialRescalerConfig
from latentgen.models.ldm_bert import LDMBertConfig, LDMBertModel
from latentgen.models.unet import UNet2DConditionModel, UNetConfig
from latentgen.models.unet2d import UNet2DConfig, UNet2DModel
from latentgen.models.vq_model import VQConfig, VQModel

__all__ = [
    "AutoencoderConfig",
    "AutoencoderKL",
    "ClassEmbedder",
    "ClassEmbedderConfig",
    "LDMBertConfig",
    "LDMBertModel",
    "SpatialRescaler",
    "SpatialRescalerConfig",
    "UNet2DConditionModel",
    "UNet2DConfig",
    "UNet2DModel",
    "UNetConfig",
    "VQConfig",
    "VQModel",
]
