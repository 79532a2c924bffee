"""How large, and how often: the sizes of the models, and how many pairs and how much time a measurement may take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

PARTS = ("import", "load", "memory", "unet", "vae", "picture", "img2img", "inpaint", "upscale", "decode", "file")
"""What `--only` can name, in the order in which it is measured."""

DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float16", "bfloat16")}
"""The formats that are measured where none is asked for."""


NOT_OF_THE_MODEL = ("steps", "task_steps", "large", "tile", "guidance_scale", "matmul")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        unet_widths, vae_widths: channels by level.
        context: width and layers of the text encoder.
        upscaler_widths: channels by level of the x4 upscaler's UNet; its VAE has the first three of `vae_widths`.
        upscaler_text_width: of its text encoder, which has `text_layers` (the published one has 23).
        pixels: side of the picture; a latent's side is an eighth.
        task_steps: of a picture that is made from another.
        large: side of the large picture that is decoded, in tiles of `tile`.
        vocabulary: tokens that the text encoder knows.
        matmul: side of the square matrices, by device.
    """

    unet_widths: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: int = 8
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vocabulary: int = 49408
    upscaler_widths: tuple[int, ...] = (256, 512, 512, 1024)
    upscaler_text_width: int = 1024
    pixels: int = 512
    steps: int = 5
    task_steps: int = 2
    large: int = 2048
    tile: int = 576
    guidance_scale: float = 7.5
    matmul: dict[str, int] = field(default_factory=lambda: {"cpu": 4096, "cuda": 8192})

    @property
    def latent_side(self) -> int:
        """Height and width of the latents."""
        return self.pixels // 8

    @property
    def model(self) -> dict[str, Any]:
        """Those that the files of the model depend on."""
        return {k: v for k, v in asdict(self).items() if k not in NOT_OF_THE_MODEL}


FULL = Settings()
QUICK = Settings(
    unet_widths=(32, 64, 64, 64), heads=8, vae_widths=(32, 32, 32, 32), text_width=32, text_layers=2, text_heads=1,
    vocabulary=1024, upscaler_widths=(32, 32, 64, 64), upscaler_text_width=32, pixels=64, large=256, tile=128,
    matmul={"cpu": 512, "cuda": 1024},
)  # fmt: skip


@dataclass(frozen=True)
class Effort:
    """At most so many pairs, in about so many seconds; at least one pair."""

    pairs: int
    seconds: float = inf


OF_TASKS = ("img2img", "inpaint", "upscale")

EFFORTS: dict[tuple[str, str], dict[str, Effort]] = {
    ("cpu", "float32"): {
        "life": Effort(2), "unet": Effort(4, 50), "vae": Effort(3, 40), "picture": Effort(2, 100), "file": Effort(7),
        **dict.fromkeys(OF_TASKS, Effort(2, 60)),
    },
    ("cpu", "bfloat16"): {
        "life": Effort(2), "unet": Effort(8, 40), "vae": Effort(4, 40), "picture": Effort(3, 60), "file": Effort(7),
        **dict.fromkeys(OF_TASKS, Effort(3, 40)),
    },
    ("cuda", "float16"): {
        "life": Effort(3), "unet": Effort(20), "vae": Effort(15), "picture": Effort(10), "file": Effort(7),
        **dict.fromkeys(OF_TASKS, Effort(10)),
    },
    ("cuda", "bfloat16"): {
        "life": Effort(2), "unet": Effort(20), "vae": Effort(15), "picture": Effort(10), "file": Effort(7),
        **dict.fromkeys(OF_TASKS, Effort(10)),
    },
    ("cuda", "float32"): {
        "life": Effort(2), "unet": Effort(10), "vae": Effort(8), "picture": Effort(4), "file": Effort(7),
        **dict.fromkeys(OF_TASKS, Effort(4)),
    },
}  # fmt: skip
"""What each measurement takes: what is quick and noisy is repeated most. "life" is a pair of processes.

The seconds keep a whole run on two cores within about half an hour. A format that is not here is not measured.
"""


def effort(device: str, dtype: str, kind: str, *, quick: bool, repeats: int | None) -> Effort:
    """How often to measure `kind` ("life" or a part); `repeats` overrides the table, its seconds too."""
    if repeats is not None:
        return Effort(repeats)
    if quick:
        return Effort(1 if kind == "life" else 2)
    return EFFORTS[device, dtype][kind]
