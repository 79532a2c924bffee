"""How large and how often: the sizes of the models, and the number of pairs of every measurement."""

from __future__ import annotations

from dataclasses import dataclass, field

PARTS = ("import", "load", "memory", "unet", "vae", "picture")
"""What `--only` can name, in the order in which it is measured."""

DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float16", "bfloat16")}
"""The formats that are measured where none is asked for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        unet_widths, vae_widths: channels by level.
        context: width and layers of the text encoder.
        pixels: side of the picture; a latent's side is an eighth.
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
    pixels: int = 512
    steps: int = 5
    guidance_scale: float = 7.5
    matmul: dict[str, int] = field(default_factory=lambda: {"cpu": 4096, "cuda": 8192})

    @property
    def latent_side(self) -> int:
        """Height and width of the latents."""
        return self.pixels // 8


FULL = Settings()
QUICK = Settings(
    unet_widths=(32, 64, 64, 64), heads=4, vae_widths=(32, 32, 32, 32), text_width=32, text_layers=2, text_heads=4,
    vocabulary=1024, pixels=64, matmul={"cpu": 512, "cuda": 1024},
)  # fmt: skip

PAIRS: dict[tuple[str, str], dict[str, int]] = {
    ("cpu", "float32"): {"life": 2, "unet": 4, "vae": 3, "picture": 2},
    ("cpu", "bfloat16"): {"life": 3, "unet": 8, "vae": 4, "picture": 3},
    ("cuda", "float16"): {"life": 3, "unet": 20, "vae": 15, "picture": 10},
    ("cuda", "bfloat16"): {"life": 1, "unet": 20, "vae": 15, "picture": 10},
    ("cuda", "float32"): {"life": 1, "unet": 10, "vae": 8, "picture": 4},
}
"""How many pairs each measurement takes: what is quick and noisy is repeated most. "life" is a pair of processes."""


def pairs(device: str, dtype: str, kind: str, *, quick: bool, repeats: int | None) -> int:
    """How many pairs of `kind` ("life" or a part) to measure; `repeats` overrides the table."""
    if repeats is not None:
        return repeats
    if quick:
        return 1 if kind == "life" else 2
    return PAIRS[device, dtype][kind]
