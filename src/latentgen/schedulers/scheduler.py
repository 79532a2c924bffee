"""What all schedulers share: the training facts, the contract of `plan` and `step`, and reading and writing the config.

Letters: `x = alpha * x0 + sigma * eps` at every knot, in every scheduler. Solvers that their papers write for
`x / alpha = x0 + (sigma / alpha) * eps` are put into these terms, so all of them walk the same kind of `Plan`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from latentgen.diffusion.noise_schedule import NoiseSchedule, make_betas
from latentgen.diffusion.plan import Plan
from latentgen.diffusion.sampling import Denoise, Noise
from latentgen.runtime.warn import warn_user
from latentgen.schedulers.config import ALWAYS_WRITTEN, RULES, is_whole, plain, sort_keys
from latentgen.weights.checksums import recording
from latentgen.weights.config_files import read_json, write_json

CONFIG_NAME = "scheduler_config.json"


@dataclass(frozen=True, kw_only=True)
class Scheduler(ABC):
    """What a checkpoint was trained with and a solver's own choices; nothing else, and nothing that changes.

    Names and defaults are those of the folder layout, so a file that leaves a field out means the same here.

    Attributes:
        num_train_timesteps: T, the length of the noise schedule.
        beta_start: first variance of the noise schedule, in (0, 1).
        beta_end: last variance, in (0, 1).
        beta_schedule: what lies between: see `latentgen.diffusion.make_betas`.
        trained_betas: (T,) the variances themselves, instead of the three fields above.
        prediction_type: what the network's output means. A step is given a `denoise` and need not know (PNDM does).
        steps_offset: added to the timesteps of "leading" spacing.
        timestep_spacing: how the timesteps of a plan lie among the T trained ones (Lin et al. 2024, table 2).
        rescale_betas_zero_snr: shift the noise schedule so that its last timestep is pure noise.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    steps_offset: int = 0
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False
    _given: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)  # as the file had it

    def __post_init__(self) -> None:
        """Check every field against its rule."""
        for name in self._fields():
            if name == "beta_schedule" and self.trained_betas is not None:
                continue  # not read: files say "trained" and the like
            given = getattr(self, name)
            value = plain(given)
            words, holds = RULES[name]
            if not holds(value):
                raise ValueError(f"{type(self).__name__}: {name}={given!r} does not fit; it must be {words}.")
            object.__setattr__(self, name, value)
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"{type(self).__name__}: trained_betas has {len(self.trained_betas)} numbers; there must be one per "
                f"training timestep, and num_train_timesteps={self.num_train_timesteps}."
            )

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the checkpoint was trained with."""
        betas: Tensor | tuple[float, ...] = self.trained_betas or make_betas(
            self.beta_schedule, self.beta_start, self.beta_end, self.num_train_timesteps
        )
        return NoiseSchedule.from_betas(betas, zero_terminal_snr=self.rescale_betas_zero_snr)

    def plan(self, num_inference_steps: int) -> Plan:
        """Lay the knots of a run: float64 arithmetic, stored as Python floats.

        Args:
            num_inference_steps: in [1, T]. (`LCMScheduler`: in [1, original_inference_steps].)

        Raises:
            ValueError: if it is not.
        """
        if not is_whole(num_inference_steps) or not 1 <= num_inference_steps <= self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps={num_inference_steps!r} does not fit; it must be a whole number from 1 to "
                f"{self.num_train_timesteps}, the number of timesteps that the model was trained with."
            )
        return self._plan(int(num_inference_steps))

    @abstractmethod
    def _plan(self, n: int) -> Plan:
        """The knots of n steps, n being checked."""

    @abstractmethod
    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """Go from knot i to knot i + 1 of `plan`. A pure function: what a multistep solver remembers is in `carry`.

        Args:
            denoise: `denoise(latents, knot)`, called at knot i and perhaps at knot i + 1, never at the last knot n.
            latents: (B, C, h, w) noisy as knot i says. float64 is kept: the coefficients are Python floats.
            i: in [0, n).
            plan: the run's knots, all of them or a tail.
            carry: what the step before returned; None at first.
            noise: called once where fresh noise of a scale above zero is added, otherwise not at all.

        Returns:
            The (B, C, h, w) latents at knot i + 1, and the next step's `carry`.
        """

    @classmethod
    def _fields(cls, *, runtime: bool = True) -> tuple[str, ...]:
        """Names of the public fields; without those that are set per run and never written, if so wished."""
        public = (f for f in fields(cls) if not f.name.startswith("_"))
        return tuple(f.name for f in public if runtime or not f.metadata.get("runtime"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build this scheduler from a `scheduler_config.json`, or from the `config` of any other scheduler.

        What `config` leaves out takes this class's default. What belongs to other schedulers is kept, unread, for a
        later `from_config`. A warning names keys that nothing here knows, which are dropped, and what is of a related
        solver (UniPC, DEIS) and only nearly what this class does.

        Raises:
            ValueError: for a value that does not fit, or that asks for what is not implemented.
        """
        mine, carried, remarks = sort_keys(cls.__name__, cls._fields(runtime=False), config)
        scheduler = cls(**mine, _given={**mine, **carried})
        for remark in remarks:
            warn_user(remark)
        return scheduler

    @property
    def config(self) -> dict[str, Any]:
        """What another scheduler's `from_config` should know.

        The training facts always; this solver's choices where they were given, so that the other class's own defaults
        hold for what was left open; and what was carried along for other classes.
        """
        own = self._fields(runtime=False)
        default = {f.name: f.default for f in fields(self)}
        said = (n for n in own if n in ALWAYS_WRITTEN or n in self._given or getattr(self, n) != default[n])
        carried = {key: value for key, value in self._given.items() if key not in own}
        return {name: getattr(self, name) for name in said} | carried

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config` to `folder`/scheduler_config.json; a reader sees the old file or the new one, never a half."""
        with recording(Path(folder), begin=False):
            write_json(Path(folder) / CONFIG_NAME, {"_class_name": type(self).__name__, **self.config})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], subfolder: str | None = None) -> Self:
        """Read `folder`/`subfolder`/scheduler_config.json, whichever scheduler wrote it.

        Raises:
            FileNotFoundError: if the file is not there.
            ValueError: if it is too large or not a JSON object, or as in `from_config`.
        """
        path = Path(folder, subfolder or "", CONFIG_NAME)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist. Give the folder that holds {CONFIG_NAME}, or the model folder and "
                "subfolder='scheduler'."
            )
        return cls.from_config(read_json(path))
