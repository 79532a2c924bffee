"""The models that come in single files: how each is recognised, and what its file does not say of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

EPSILON, V = "epsilon", "v_prediction"

SD_BETAS = (0.00085, 0.012)
SCALE_OF_SD = 0.18215


@dataclass(frozen=True)
class Looks:
    """What a file shows of its model.

    Attributes:
        in_channels: of the UNet.
        width: of its finest level.
        context: of the embeddings that it attends to; None where it attends to nothing.
        conditioner: a key of `CONDITIONERS`, "first stage" for a copy of that, or None.
        autoencoder: kind and factor, as "kl-f8".
    """

    in_channels: int
    width: int
    context: int | None
    conditioner: str | None
    autoencoder: str | None

    def __str__(self) -> str:
        attends = f"attends to embeddings of width {self.context}" if self.context else "attends to no embeddings"
        return (
            f"a UNet of {self.in_channels} input channels and width {self.width} that {attends}, conditioner: "
            f"{self.conditioner or 'none'}, autoencoder: {self.autoencoder or 'none'}"
        )


@dataclass(frozen=True, kw_only=True)
class Family:
    """A published model, or several of one form.

    Attributes:
        title: what it is.
        architecture: what metadata (ModelSpec) calls it.
        folder_class: the pipeline in whose folder it would be; see `Pipeline.folder_classes`.
        looks: how it is recognised.
        betas: the first and last of its noise schedule, which is linear in their square roots.
        prediction: what the UNet predicts.
        heads, head_channels: of its UNet's attention; one of them.
        sample_size: of the latents that it was trained on.
        scale: of the autoencoder's latents, where the file holds no scale factor.
        scheduler: the class that its folder names, or DDIM.
        upcast_attention: whether its UNet's attention overflows in float16 and is computed in float32.
        offset: the scheduler's `steps_offset`: 1, as in the original scripts.
    """

    title: str
    architecture: str
    folder_class: str
    looks: Looks
    betas: tuple[float, float]
    prediction: str = EPSILON
    heads: int | None = None
    head_channels: int | None = None
    sample_size: int = 64
    scale: float = 1.0
    scheduler: str = "DDIMScheduler"
    upcast_attention: bool = False
    offset: int = 1

    def scheduler_config(self, prediction: str, *, zero_snr: bool) -> dict[str, Any]:
        """The content of its `scheduler_config.json`."""
        config: dict[str, Any] = {
            "beta_start": self.betas[0],
            "beta_end": self.betas[1],
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": prediction,
            "steps_offset": self.offset,
            "set_alpha_to_one": False,
            "clip_sample": False,
        }
        if zero_snr:
            return {
                "_class_name": "DDIMScheduler",
                **config,
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            }
        skip = {"skip_prk_steps": True} if self.scheduler == "PNDMScheduler" else {}
        return {"_class_name": self.scheduler, **config, **skip}


_SD1: dict[str, Any] = {"betas": SD_BETAS, "heads": 8, "scale": SCALE_OF_SD}
_SD2: dict[str, Any] = {"betas": SD_BETAS, "head_channels": 64, "scale": SCALE_OF_SD}
_LDM: tuple[float, float] = (0.0015, 0.0195)

FAMILIES: dict[str, Family] = {
    "sd-v1": Family(
        title="Stable Diffusion 1", architecture="stable-diffusion-v1",
        folder_class="StableDiffusionPipeline", scheduler="PNDMScheduler", **_SD1,
        looks=Looks(4, 320, 768, "clip", "kl-f8")),
    "sd-v1-inpainting": Family(
        title="Stable Diffusion 1, inpainting", architecture="stable-diffusion-v1-inpainting",
        folder_class="StableDiffusionInpaintPipeline", **_SD1,
        looks=Looks(9, 320, 768, "clip", "kl-f8")),
    "sd-v2-base": Family(
        title="Stable Diffusion 2, base (512)", architecture="stable-diffusion-v2-512",
        folder_class="StableDiffusionPipeline", scheduler="PNDMScheduler", **_SD2,
        looks=Looks(4, 320, 1024, "open clip", "kl-f8")),
    "sd-v2-768-v": Family(
        title="Stable Diffusion 2 (768, v)", architecture="stable-diffusion-v2-768-v",
        folder_class="StableDiffusionPipeline", **_SD2, prediction=V, sample_size=96,
        upcast_attention=True,
        looks=Looks(4, 320, 1024, "open clip", "kl-f8")),
    "sd-v2-inpainting": Family(
        title="Stable Diffusion 2, inpainting", architecture="stable-diffusion-v2-inpainting",
        folder_class="StableDiffusionInpaintPipeline", **_SD2,
        looks=Looks(9, 320, 1024, "open clip", "kl-f8")),
    "sd-x4-upscaler": Family(
        title="Stable Diffusion x4 upscaler", architecture="stable-diffusion-x4-upscaler",
        folder_class="StableDiffusionUpscalePipeline", betas=(0.0001, 0.02),
        prediction=V, heads=8, sample_size=128, scale=0.08333, looks=Looks(7, 256, 1024, "open clip", "kl-f4")),
    "ldm-txt2img-1p4B-eval": Family(
        title="LDM text to image (1.45B)", architecture="latent-diffusion/txt2img-1p4B-eval",
        folder_class="LDMTextToImagePipeline", betas=SD_BETAS, heads=8, sample_size=32,
        scale=SCALE_OF_SD, looks=Looks(4, 320, 1280, "bert", "kl-f8")),
    "ldm-text2img256": Family(
        title="LDM text to image (Conceptual Captions)", architecture="latent-diffusion/text2img256",
        folder_class="LDMTextToImagePipeline", betas=_LDM, head_channels=32,
        looks=Looks(3, 192, 640, "bert", "vq-f4")),
    "ldm-cin256-v2": Family(
        title="LDM class to image (ImageNet, 1001 classes)", architecture="latent-diffusion/cin256-v2",
        folder_class="Class2ImagePipeline", betas=_LDM, heads=1,
        looks=Looks(3, 192, 512, "classes", "vq-f4")),
    "ldm-cin256": Family(
        title="LDM class to image (ImageNet)", architecture="latent-diffusion/cin256",
        folder_class="Class2ImagePipeline", betas=_LDM, head_channels=32,
        sample_size=32, looks=Looks(4, 256, 512, "classes", "vq-f8")),
    "ldm-layout2img-openimages256": Family(
        title="LDM layout to image (OpenImages)", architecture="latent-diffusion/layout2img-openimages256",
        folder_class="Layout2ImagePipeline", betas=(0.0015, 0.0205),
        head_channels=32, looks=Looks(3, 128, 512, "bert", "vq-f4")),
    "ldm-semantic_synthesis256": Family(
        title="LDM semantic synthesis", architecture="latent-diffusion/semantic_synthesis256",
        folder_class="Semantic2ImagePipeline", betas=(0.0015, 0.0205), heads=8,
        looks=Looks(6, 128, None, "map", "vq-f4")),
    "ldm-bsr_sr": Family(
        title="LDM super-resolution", architecture="latent-diffusion/bsr_sr",
        folder_class="LDMSuperResolutionPipeline", betas=(0.0015, 0.0155), head_channels=32,
        looks=Looks(6, 160, None, None, "vq-f4")),
    "ldm-inpainting_big": Family(
        title="LDM inpainting", architecture="latent-diffusion/inpainting_big",
        folder_class="LDMInpaintPipeline", betas=(0.0015, 0.0205), heads=8,
        looks=Looks(7, 256, None, "first stage", "vq-f4")),
    "ldm-celeba256": Family(
        title="LDM without a condition (CelebA-HQ, FFHQ, LSUN bedrooms)", architecture="latent-diffusion/celeba256",
        folder_class="LDMPipeline", betas=_LDM,
        head_channels=32, looks=Looks(3, 224, None, None, "vq-f4")),
    "ldm-lsun_churches256": Family(
        title="LDM without a condition (LSUN churches)", architecture="latent-diffusion/lsun_churches256",
        folder_class="LDMPipeline", betas=(0.0015, 0.0155), heads=8,
        sample_size=32, looks=Looks(4, 192, None, None, "kl-f8")),
}  # fmt: skip

SAME_AS = {
    "ldm-ffhq256": "ldm-celeba256",
    "ldm-lsun_beds256": "ldm-celeba256",
    "ldm-semantic_synthesis512": "ldm-semantic_synthesis256",
}
"""Models whose files have another's names and shapes, and whose settings differ in nothing that is used."""

LATENT_SCALES = {"kl-f8": SCALE_OF_SD}
"""Of autoencoders that come alone: Stable Diffusion's is the one that people hold. Others are not scaled."""


def likenesses(looks: Looks) -> list[str]:
    """The families of a file that looks so; what it lacks (conditioner, autoencoder) may be anything."""

    def fits(theirs: Looks) -> bool:
        return all(
            getattr(looks, f.name) == getattr(theirs, f.name)
            or (f.name in ("conditioner", "autoencoder") and getattr(looks, f.name) is None)
            for f in fields(looks)
        )

    found = [name for name, family in FAMILIES.items() if fits(family.looks)]
    exact = [name for name in found if FAMILIES[name].looks == looks]
    return exact or found


def nearest(looks: Looks) -> str:
    """The family that has most in common with a file, for an error."""

    def common(name: str) -> int:
        theirs = FAMILIES[name].looks
        return sum(getattr(looks, f.name) == getattr(theirs, f.name) for f in fields(looks))

    return max(FAMILIES, key=common)
