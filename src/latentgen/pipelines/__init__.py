"""Components put together: prompts and pictures in, pictures out."""

from latentgen.pipelines.canvas import extend_canvas
from latentgen.pipelines.class2image import Class2ImagePipeline
from latentgen.pipelines.img2img import Img2ImgPipeline
from latentgen.pipelines.inpaint import InpaintPipeline
from latentgen.pipelines.layout2image import Layout2ImagePipeline
from latentgen.pipelines.output import ImageOutput
from latentgen.pipelines.semantic2image import Semantic2ImagePipeline
from latentgen.pipelines.superres import SuperResPipeline
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.pipelines.unconditional import UnconditionalPipeline

__all__ = [
    "Class2ImagePipeline",
    "ImageOutput",
    "Img2ImgPipeline",
    "InpaintPipeline",
    "Layout2ImagePipeline",
    "Semantic2ImagePipeline",
    "SuperResPipeline",
    "Text2ImagePipeline",
    "UnconditionalPipeline",
    "extend_canvas",
]
