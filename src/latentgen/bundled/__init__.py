"""The small trained model that ships with the package: coloured shapes on plain, striped and gradient backgrounds."""

from pathlib import Path

MODEL = "tiny_scenes"
BUNDLED_GUIDANCE = 2.0  # the guidance scale that its figures in docs/bundled-model.md were measured at


def bundled_model() -> Path:
    """The folder of the bundled model, for `Text2ImagePipeline.from_pretrained`.

    It draws 128 x 128 pictures of one or two shapes, for prompts such as "a small red circle to the left of a large
    blue star, striped grey background". How it was made: examples/tiny_scenes/README.md.

    Raises:
        FileNotFoundError: if the package was installed without its data files.
    """
    folder = Path(__file__).parent / MODEL
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} is missing: this installation has no data files; reinstall latentgen.")
    return folder
