"""What a network's output means. All three forms say the same thing; solvers only see `Prediction`.

Letters: `x = alpha * x0 + sigma * eps`; `v = alpha * eps - sigma * x0` (Salimans and Ho 2022, section 4).
`alpha` and `sigma` are floats, or tensors that broadcast against the latents.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction"]
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "sample", "v_prediction")


class Prediction(NamedTuple):
    """The clean latents and the noise that a network believes a noisy latent to be made of, both (B, C, h, w)."""

    x0: Tensor
    eps: Tensor


def check_prediction_type(kind: str) -> None:
    """Raise ValueError unless `kind` is one of `PREDICTION_TYPES`."""
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type={kind!r} is not known; use one of {', '.join(PREDICTION_TYPES)}.")


def to_prediction(kind: str, output: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Prediction:
    """Read a network's `output` at the noisy latents `x`, both (B, C, h, w).

    Raises:
        ValueError: for an unknown `kind`, and for epsilon at a knot without signal (alpha = 0), where x0 is undefined.
    """
    if kind == "epsilon":
        if isinstance(alpha, float) and alpha == 0:
            raise ValueError(
                "prediction_type='epsilon' cannot start from pure noise (zero terminal SNR): the clean picture is "
                "undefined there. Set rescale_betas_zero_snr=False, or use a v_prediction model."
            )
        return Prediction((x - sigma * output) / alpha, output)
    if kind == "sample":
        return Prediction(output, (x - alpha * output) / sigma)
    if kind == "v_prediction":
        return Prediction(alpha * x - sigma * output, sigma * x + alpha * output)
    check_prediction_type(kind)
    raise AssertionError("unreachable")


def target(kind: str, x0: Tensor, eps: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Return the output that a perfect network gives: the training target, (B, C, h, w)."""
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        return alpha * eps - sigma * x0
    check_prediction_type(kind)
    raise AssertionError("unreachable")
