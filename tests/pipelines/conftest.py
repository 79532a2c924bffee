import shutil

import pytest

from latentgen.pipelines.text2image import Text2ImagePipeline


@pytest.fixture(scope="session")
def _shared_pipe(model_folder):
    pipe = Text2ImagePipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    pipe.show_progress = False
    return pipe


@pytest.fixture
def pipe(_shared_pipe):
    """The tiny pipeline, in float32 on the CPU: a new object each time, around components that are shared."""
    pipe = Text2ImagePipeline(**_shared_pipe.components)
    pipe.show_progress = False
    return pipe


@pytest.fixture
def folder_copy(model_folder, tmp_path):
    """A copy of the tiny model folder, to be damaged."""
    return shutil.copytree(model_folder, tmp_path / "model")
