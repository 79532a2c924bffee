"""The small trained models that ship with the package: coloured shapes on plain, striped and gradient backgrounds."""

from pathlib import Path

MODELS = {"text": "tiny_scenes", "inpainting": "tiny_scenes_inpaint", "super_resolution": "tiny_scenes_x4"}
"""Folders by task, as the settings of a training run call it."""

BUNDLED_GUIDANCE = 2.0
"""The guidance scale that the figures of the text and the inpainting model were measured at."""

BUNDLED_UPSCALE_STEPS = 4
"""The steps that the figures of the super-resolution model were measured with: more do no better."""


def bundled_model(task: str = "text") -> Path:
    """The folder of a bundled model. How they were made: examples/tiny_scenes/README.md.

    Args:
        task: "text" for `Text2ImagePipeline` and `Img2ImgPipeline`: 128 x 128 pictures of one or two shapes, for prompts such as
            "a small red circle to the left of a large blue star, striped grey background". "inpainting" for
            `InpaintPipeline`: a part of such pictures, for such prompts.
            "super_resolution" for `SuperResPipeline`: such pictures at 4 times the width and height, made for 32 x 32 pixels.

    Raises:
        ValueError: for a task that is not known.
        FileNotFoundError: if the package was installed without its data files.
    """
    if task not in MODELS:
        raise ValueError(
            f"task={task!r} has no bundled model: name a model folder, or use one of {', '.join(map(repr, MODELS))}."
        )
    folder = Path(__file__).parent / MODELS[task]
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} is missing: this installation has no data files; reinstall latentgen.")
    return folder
