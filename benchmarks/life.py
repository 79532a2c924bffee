"""One library's life in a process of its own: import, load, load again, draw, and how much memory that took.

    python life.py LIBRARY STAGE JOB

LIBRARY is latentgen or diffusers; STAGE, where to stop, is import, load or memory, or what latentgen does alone (`ALONE`);
JOB is JSON (see `processes.py`).
Prints one line of JSON. Imports nothing of the benchmark, so that nothing else is on the clock.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

STAGES = ("import", "load", "memory")
"""How far a life goes; there are others, of latentgen alone."""


def import_library(library: str) -> tuple[dict[str, float], Any]:
    """Seconds of `import torch`, of the library after it, and of the first pipeline class; and that class."""
    pipeline_class: Any
    start = time.perf_counter()
    import torch

    after_torch = time.perf_counter()
    if library == "latentgen":
        import latentgen

        after_library = time.perf_counter()
        pipeline_class = latentgen.Text2ImagePipeline
    else:
        import diffusers

        after_library = time.perf_counter()
        pipeline_class = diffusers.StableDiffusionPipeline
    end = time.perf_counter()
    assert torch.__version__
    return {
        "import_torch": after_torch - start,
        "import_library": after_library - after_torch,
        "import_pipeline": end - after_torch,
    }, pipeline_class


def load(library: str, pipeline_class: Any, job: dict[str, Any]) -> Any:
    """The pipeline, on its device, with every weight looked at: a file that is only mapped is not read yet."""
    import torch

    dtype = getattr(torch, job["dtype"])
    if library == "latentgen":
        pipeline = pipeline_class.from_pretrained(
            job["folder"], device=job["device"], dtype=dtype, variant=job["variant"]
        )
    else:
        pipeline = pipeline_class.from_pretrained(
            job["folder"], dtype=dtype, variant=job["variant"], local_files_only=True
        ).to(job["device"])
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for parameter in module.parameters():
            parameter.data.view(-1)[::1024].sum()  # every page of 4 KiB, in the widest format
    if job["device"] == "cuda":
        torch.cuda.synchronize()
    return pipeline


def draw(library: str, pipeline: Any, job: dict[str, Any]) -> None:
    """A picture in few steps, at full size: more steps take no more memory."""
    sizes = {key: job[key] for key in ("height", "width", "num_inference_steps", "guidance_scale")}
    if library == "latentgen":
        pipeline(job["prompt"], **sizes, show_progress=False)
    else:
        pipeline.set_progress_bar_config(disable=True)
        pipeline(job["prompt"], **sizes)


def peak_bytes(device: str) -> int:
    """The most memory used so far: tensors on a GPU, or else all resident pages of this process."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # unlike getrusage, not inherited from the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def live(library: str, stage: str, job: dict[str, Any]) -> dict[str, float]:
    """Go as far as `stage` and tell what it took."""
    result, pipeline_class = import_library(library)
    if stage == "import":
        return result
    start = time.perf_counter()
    pipeline = load(library, pipeline_class, job)
    result["first_load"] = time.perf_counter() - start
    result["import_and_load"] = result["import_pipeline"] + result["first_load"]
    if stage == "memory":
        draw(library, pipeline, job)
        result["peak"] = peak_bytes(job["device"])
    del pipeline
    gc.collect()
    start = time.perf_counter()
    load(library, pipeline_class, job)
    return result | {"load": time.perf_counter() - start}


def decode(job: dict[str, Any]) -> dict[str, float]:
    """Bytes above the weights that decoding a large picture in tiles takes, at their peak."""
    import torch

    from latentgen import AutoencoderKL, Tiling
    from latentgen.pipelines.first_stage import decode

    vae = AutoencoderKL.from_pretrained(
        Path(job["folder"]) / "vae", device=job["device"], dtype=getattr(torch, job["dtype"]), variant=job["variant"]
    )
    for parameter in vae.parameters():
        parameter.data.view(-1)[::1024].sum()
    side, factor = job["side"], vae.config.factor
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, vae.config.latent_channels, side // factor, side // factor, generator=generator)
    weights = forget_peak(job["device"])
    with torch.no_grad():
        pixels, _ = decode(vae, latents.to(job["device"]), Tiling(vae=job["tile"]))
    assert pixels.shape == (1, 3, side, side)
    return {"above": peak_bytes(job["device"]) - weights}


def write(job: dict[str, Any]) -> dict[str, float]:
    """Write the model as one file."""
    from latentgen import Text2ImagePipeline

    pipeline = Text2ImagePipeline.from_pretrained(job["folder"], device="cpu", dtype="float32", variant=job["variant"])
    pipeline.save_single_file(job["file"], family=job["family"])
    return {}


def load_file(job: dict[str, Any]) -> dict[str, float]:
    """Loading a single file, beside reading it: the median ratio of both, and the peak memory as a multiple of the size."""
    from statistics import median

    from latentgen import Text2ImagePipeline

    path, tokenizer = Path(job["file"]), Path(job["folder"]) / "tokenizer"
    size = path.stat().st_size

    def read() -> float:
        start = time.perf_counter()
        data = path.read_bytes()
        seconds = time.perf_counter() - start
        assert len(data) == size
        return seconds

    def load() -> float:
        start = time.perf_counter()
        pipeline = Text2ImagePipeline.from_single_file(
            path, family=job["family"], tokenizer=tokenizer, device="cpu", dtype="float32"
        )
        seconds = time.perf_counter() - start
        assert pipeline.unet.dtype is not None
        return seconds

    with path.open("rb") as file:  # into the page cache, without memory of its own
        while file.read(2**24):
            pass
    Text2ImagePipeline.from_pretrained  # noqa: B018 (its imports belong to no turn)
    import transformers.models.clip.modeling_clip  # noqa: F401

    before = forget_peak("cpu")
    load()
    memory = (peak_bytes("cpu") - before) / size
    ratios = []
    for k in range(job["pairs"]):
        turns = {turn: turn() for turn in ((read, load) if k % 2 else (load, read))}
        ratios.append(turns[load] / turns[read])
    return {"time": median(ratios), "memory": memory, "size": size}


ALONE = {"decode": decode, "write": write, "file": load_file}
"""Lives of latentgen alone."""


def forget_peak(device: str) -> int:
    """Begin to look for the peak anew; the bytes that are used now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    clear = Path("/proc/self/clear_refs")
    if clear.is_file():
        clear.write_text("5")  # see proc(5): the peak of resident pages becomes what is resident now
    return peak_bytes(device)


if __name__ == "__main__":
    library, stage, job = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    told = ALONE[stage](job) if stage in ALONE else live(library, stage, job)
    print(json.dumps(told))
