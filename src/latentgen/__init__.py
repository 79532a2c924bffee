"""latentgen: latent diffusion (Rombach et al. 2022) and Stable Diffusion.

    from latentgen import Text2ImagePipeline

    pipe = Text2ImagePipeline.from_pretrained("path/to/stable-diffusion-v1-5")
    pipe("an astronaut riding a horse", guidance_scale=7.5).images[0].save("astronaut.png")

Names are imported when they are first used, so that `import latentgen` costs next to nothing beside torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from latentgen.bundled import bundled_model
    from latentgen.diffusion import NoiseSchedule, Plan, StopSampling, sample
    from latentgen.models import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
    from latentgen.pipelines import (
        Class2ImagePipeline,
        ImageOutput,
        Img2ImgPipeline,
        InpaintPipeline,
        Layout2ImagePipeline,
        Semantic2ImagePipeline,
        SuperResPipeline,
        Text2ImagePipeline,
        UnconditionalPipeline,
        extend_canvas,
    )
    from latentgen.runtime.tiling import Tiling
    from latentgen.schedulers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        LCMScheduler,
        PNDMScheduler,
    )
    from latentgen.text import LayoutTokenizer
    from latentgen.weights import WeightsError

_HOMES = {
    "bundled": ("bundled_model",),
    "diffusion": ("NoiseSchedule", "Plan", "StopSampling", "sample"),
    "models": ("AutoencoderKL", "UNet2DConditionModel", "UNet2DModel", "VQModel"),
    "pipelines": (
        "Class2ImagePipeline",
        "ImageOutput",
        "Img2ImgPipeline",
        "InpaintPipeline",
        "Layout2ImagePipeline",
        "Semantic2ImagePipeline",
        "SuperResPipeline",
        "Text2ImagePipeline",
        "UnconditionalPipeline",
        "extend_canvas",
    ),
    "runtime.tiling": ("Tiling",),
    "schedulers": (
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LCMScheduler",
        "PNDMScheduler",
    ),
    "text": ("LayoutTokenizer",),
    "weights": ("WeightsError",),
}
_HOME_OF = {name: f"latentgen.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 (by subject)
    "Text2ImagePipeline", "Img2ImgPipeline", "InpaintPipeline", "SuperResPipeline", "UnconditionalPipeline",
    "Class2ImagePipeline", "Layout2ImagePipeline", "Semantic2ImagePipeline", "extend_canvas", "Tiling", "ImageOutput",
    "bundled_model", "LayoutTokenizer", "StopSampling", "WeightsError",
    "AutoencoderKL", "VQModel", "UNet2DConditionModel", "UNet2DModel",
    "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LCMScheduler", "PNDMScheduler",
    "NoiseSchedule", "Plan", "sample",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'latentgen' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
