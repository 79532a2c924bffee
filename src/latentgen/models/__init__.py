"""Networks, one per file, each beside its config."""

from latentgen.models.autoencoder_kl import AutoencoderConfig, AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel, UNetConfig
from latentgen.models.unet2d import UNet2DConfig, UNet2DModel
from latentgen.models.vq_model import VQConfig, VQModel

__all__ = [
    "AutoencoderConfig",
    "AutoencoderKL",
    "UNet2DConditionModel",
    "UNet2DConfig",
    "UNet2DModel",
    "UNetConfig",
    "VQConfig",
    "VQModel",
]
