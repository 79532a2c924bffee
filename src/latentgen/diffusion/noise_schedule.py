"""The forward process: how much signal and how much noise a latent holds at each timestep.

Letters: `x_t = alpha_t * x0 + sigma_t * eps` with `alpha_t^2 + sigma_t^2 = 1`; `t` falls from T - 1 (noise) to 0 (clean).
In the DDPM paper's letters `alpha_t^2` is the product of `1 - beta_s` up to t, there called alpha-bar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def make_betas(name: str, start: float, end: float, count: int) -> Tensor:
    """Return the variances `beta_t` of a named schedule, (count,) float32.

    `linear` is DDPM's (Ho et al. 2020, section 4); `scaled_linear` is linear in the square root and what LDM calls
    "linear" (Rombach et al. 2022); `squaredcos_cap_v2` is the cosine schedule (Nichol and Dhariwal 2021, eq. 17), whose
    betas are cut at 0.999 and which does not use `start` and `end`.

    The arithmetic is float32 because that is what the weights in use were trained with.
    """
    if name == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32, device="cpu")
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32, device="cpu") ** 2
    if name == "squaredcos_cap_v2":

        def alpha_bar(s: float) -> float:
            return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)]
        return torch.tensor(betas, dtype=torch.float32, device="cpu")
    raise ValueError(f"beta_schedule={name!r} is not known; use one of {', '.join(BETA_SCHEDULES)}.")


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Shift and scale the signal so that the last timestep holds none (Lin et al. 2024, algorithm 1), (T,) -> (T,).

    The last beta is 1, exactly.
    """
    alphas = (1.0 - betas).cumprod(0).sqrt()
    first, last = alphas[0].clone(), alphas[-1].clone()
    alphas = (alphas - last) * (first / (first - last))
    squared = alphas**2
    return 1 - torch.cat([squared[:1], squared[1:] / squared[:-1]])


@dataclass(frozen=True)
class NoiseSchedule:
    """Signal and noise at every trained timestep.

    Attributes:
        alphas_cumprod: `alpha_t^2`, (T,), float32 on the CPU, falling, in [0, 1).
    """

    alphas_cumprod: Tensor

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float], *, zero_terminal_snr: bool = False) -> NoiseSchedule:
        """Build the schedule from `beta_t`, (T,), each in (0, 1)."""
        betas = torch.as_tensor(betas, dtype=torch.float32, device="cpu")
        if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must be a non-empty list of numbers in (0, 1).")
        if zero_terminal_snr:
            betas = rescale_to_zero_snr(betas)
        return cls((1.0 - betas).cumprod(0))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def alpha_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return `alpha_t` and `sigma_t` at integer `timesteps` (any shape, on any device), float32, in [0, 1]."""
        squared = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return squared.sqrt(), (1 - squared).sqrt()

    def add_noise(self, x0: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
        """Noise clean latents: `alpha_t * x0 + sigma_t * eps` (Ho et al. 2020, eq. 4).

        Args:
            x0: (B, C, h, w) clean latents.
            eps: (B, C, h, w) standard normal noise.
            timesteps: (B,) integers in [0, T).
        """
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in self.alpha_sigma(timesteps))
        return alpha * x0 + sigma * eps
