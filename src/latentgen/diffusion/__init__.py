"""The mathematics: noise schedule, prediction types, plans, guidance and the sampling loop. No networks, no files."""

from latentgen.diffusion.guidance import guide
from latentgen.diffusion.noise import NoiseStream
from latentgen.diffusion.noise_schedule import NoiseSchedule, make_betas
from latentgen.diffusion.plan import Plan
from latentgen.diffusion.prediction import Prediction, target, to_prediction
from latentgen.diffusion.sampling import StepEvent, StopSampling, sample

__all__ = [
    "NoiseSchedule",
    "NoiseStream",
    "Plan",
    "Prediction",
    "StepEvent",
    "StopSampling",
    "guide",
    "make_betas",
    "sample",
    "target",
    "to_prediction",
]
