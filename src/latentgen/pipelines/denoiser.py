"""The UNet under guidance, as the callable that the sampling loop takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentgen.diffusion.guidance import guide
from latentgen.diffusion.plan import Plan
from latentgen.diffusion.prediction import Prediction, to_prediction
from latentgen.models.unet import UNet2DConditionModel
from latentgen.models.unet2d import UNet2DModel
from latentgen.nn.attention import KeyValue
from latentgen.runtime.tiling import in_tiles

WILD = 1e3  # latents are noise of unit variance and a picture of about unit variance; beyond this something drove them away


class Denoiser:
    """`denoiser(latents, i)`: what the guided UNet believes at knot i of the plan.

    All that does not depend on the step is computed here, once: keys and values of the text for every cross-attention
    layer, and what each timestep adds to each residual block.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel | UNet2DModel,
        prediction_type: str,
        plan: Plan,
        embeddings: Tensor | None,
        negative_embeddings: Tensor | None,
        *,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        extra: Tensor | None = None,
        class_label: int | None = None,
        tile: int | None = None,
        overlap: int = 0,
    ) -> None:
        """Prepare a run.

        Args:
            unet: the network.
            prediction_type: what its output means.
            plan: the run's knots.
            embeddings: (B, S, D) of the prompts; None for a network without a context.
            negative_embeddings: (B, S, D) of the negative prompts; None runs without guidance.
            guidance_scale: see `guide`.
            guidance_rescale: see `guide`.
            extra: (B, C', h, w) further input channels, the same at every step.
            tile, overlap: side of the tiles that the UNet sees and how far they overlap, in latents; None shows it all.
            class_label: for networks with a class (or noise level) embedding: that of all images.
        """
        self.unet = unet
        self.prediction_type = prediction_type
        self.plan = plan
        self.guided = negative_embeddings is not None
        self.scale, self.rescale = guidance_scale, guidance_rescale
        self.context: list[KeyValue] = []
        if isinstance(unet, UNet2DConditionModel) and embeddings is not None:
            both = embeddings if negative_embeddings is None else torch.cat([negative_embeddings, embeddings])
            self.context = unet.prepare_context(both.to(unet.dtype))
        timesteps = torch.tensor(plan.timesteps, dtype=torch.float32, device=unet.device)
        labels = None if class_label is None else torch.full((len(plan),), class_label, device=unet.device)
        shifts = unet.prepare_time(timesteps, labels)
        self.shifts = [[block[i : i + 1] for block in shifts] for i in range(len(plan))]
        self.extra = extra
        self.tile, self.overlap = tile, overlap
        self._unread: list[tuple[int, Tensor, Tensor]] = []

    def __call__(self, latents: Tensor, i: int) -> Prediction:
        x = latents if self.extra is None else torch.cat([latents, self.extra], dim=1)
        x = x.to(self.unet.dtype)
        if self.guided:
            x = torch.cat([x, x])
        output = self._denoise(x, i)
        self._unread.append((i, output.isfinite().all(), latents.abs().amax()))
        if output.device.type == "cpu":
            self.check_outputs()
        if self.guided:
            unconditional, conditional = output.chunk(2)
            output = guide(unconditional, conditional, self.scale, self.rescale)
        return to_prediction(self.prediction_type, output, latents, self.plan.alphas[i], self.plan.sigmas[i])

    def _denoise(self, x: Tensor, i: int) -> Tensor:
        def network(part: Tensor) -> Tensor:
            return self.unet.denoise(part, self.shifts[i], self.context)

        if self.tile is None:
            return network(x).float()
        return in_tiles(network, x, tile=self.tile, overlap=self.overlap)

    def check_outputs(self) -> None:
        """Raise if an output since the last check was not finite.

        On the CPU every step checks its own. Looking at a GPU's numbers waits for it, so that is for after the last step.

        Raises:
            FloatingPointError: naming the step and the component.
        """
        if self._unread and not all(torch.stack([fine for _, fine, _ in self._unread]).tolist()):
            i, _, peak = next(record for record in self._unread if not record[1])
            raise FloatingPointError(
                f"the UNet (unet) gave values that are not finite at step {i}, counted from 0, of {len(self.plan)} "
                f"(timestep {self.plan.timesteps[i]:g}) in {self.unet.dtype}: {self._remedy(float(peak))}."
            )
        self._unread.clear()

    def _remedy(self, peak: float) -> str:
        """What to look at when the UNet broke on latents of which the largest was `peak`."""
        if not peak <= WILD:  # NaN is not
            reached = (
                f"had grown to {peak:.3g}, far beyond what a UNet is trained on"
                if math.isfinite(peak)
                else "were not finite"
            )
            guidance = f"lower guidance_scale={self.scale:g}, or " if self.guided else ""
            return f"the latents that it was given {reached}; {guidance}check the scheduler and the callback"
        remedy = "check its weights"
        return remedy if self.unet.dtype == torch.float32 else f"load the pipeline with dtype='float32', or {remedy}"
