"""Draws four pictures with the bundled model: what `make demo` runs."""

from pathlib import Path

from latentgen import Text2ImagePipeline, bundled_model
from latentgen.bundled import BUNDLED_GUIDANCE

PROMPTS = [
    "a large red heart on a striped cream background",
    "a small yellow star above a large purple ring on a navy background",
    "a large green circle to the left of a small orange cross on a gradient grey background",
    "a small blue diamond on a plain white background",
]


def main() -> None:
    pipe = Text2ImagePipeline.from_pretrained(bundled_model())
    pictures = pipe(PROMPTS, num_inference_steps=50, guidance_scale=BUNDLED_GUIDANCE, seed=0).images
    folder = Path("outputs").resolve()
    folder.mkdir(exist_ok=True)
    for number, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        path = folder / f"demo-{number}.png"
        picture.save(path)
        print(f"{path}: {prompt}")


if __name__ == "__main__":
    main()
