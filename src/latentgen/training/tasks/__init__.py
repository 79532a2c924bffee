"""The tasks that stage 2 trains for, by the names that a run's file has for them."""

from latentgen.training.config import TASKS
from latentgen.training.tasks.class_to_image import ClassToImage
from latentgen.training.tasks.inpainting import Inpainting
from latentgen.training.tasks.super_resolution import SuperResolution
from latentgen.training.tasks.task import Task
from latentgen.training.tasks.text_to_image import TextToImage

TASK_CLASSES: dict[str, type[Task]] = dict(
    zip(TASKS, (TextToImage, ClassToImage, SuperResolution, Inpainting), strict=True)
)

__all__ = ["TASK_CLASSES", "Task"]
