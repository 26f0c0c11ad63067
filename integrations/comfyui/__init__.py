"""ComfyUI nodes for pictish: load a model, draw, edit, describe, tokenize and detokenize images.

ComfyUI imports this folder from its `custom_nodes/` (README.md). An IMAGE is a batch of images: a float
tensor (B, H, W, C) in [0, 1]. A setting that is a socket and not connected is left to the model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import pictish

CATEGORY = "pictish"
STARTER = "starter"  # the model that ships with the package

Input = tuple[Any, dict[str, Any]]  # kind, options


def _socket(kind: str, tooltip: str) -> Input:
    """An input without a widget: connected, or not given at all."""
    return kind, {"forceInput": True, "tooltip": tooltip}


PIPELINE: Input = ("PICTISH_PIPELINE", {"tooltip": "A model from the Load node."})
IMAGES: Input = ("IMAGE", {"tooltip": "One image, or a batch."})
SEED: Input = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 2**64 - 1,
        "control_after_generate": True,
        "tooltip": "Seed of the first image; each further one adds 1.",
    },
)
DECODING = {
    "num_inference_steps": _socket("INT", "Steps of the diffusion decoder; 0 uses the preview decoder."),
    "decoder_guidance_scale": _socket("FLOAT", "Classifier-free guidance scale of the decoder."),
    "upscale": _socket("INT", "Super-resolution factor 1, 2 or 4, if the model has an upscaler."),
}
SAMPLING = {
    "guidance_scale": _socket("FLOAT", "Text classifier-free guidance scale; 1 disables it."),
    "temperature": _socket("FLOAT", "Sampling temperature; 0 is greedy."),
    "top_p": _socket("FLOAT", "Nucleus sampling: smallest set of codes with this total probability."),
}


class LoadPictish:
    """A model by name."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """A name of the list alone: a workflow cannot have any other folder opened."""
        return {
            "required": {
                "model": (
                    list(_models()),
                    {"default": STARTER, "tooltip": "`starter`, or a folder in ComfyUI's models/pictish."},
                ),
                "device": (["auto", "cpu", "cuda"], {"default": "auto"}),
                "dtype": (["float32", "bfloat16"], {"default": "float32"}),
            }
        }

    CATEGORY = CATEGORY
    DESCRIPTION = "Loads a pictish model; its parts are read when they are first used."
    RETURN_TYPES = ("PICTISH_PIPELINE",)
    RETURN_NAMES = ("pipeline",)
    FUNCTION = "load"

    def load(self, model: str, device: str, dtype: str) -> tuple[pictish.Pipeline]:
        """ValueError for a name that is not in the list: linked values are not checked by ComfyUI."""
        found = _models()
        if model not in found:
            raise ValueError(f"model: {model[:80]!r} is not installed; {', '.join(found)} would fit")
        return (pictish.Pipeline.from_pretrained(found[model], device=device, dtype=dtype),)


class DrawPictish:
    """Images of a prompt."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Width and height are connected both, or neither."""
        side = "pixels of the image, with the other side; the model's own size if neither is connected."
        return {
            "required": {
                "pipeline": PIPELINE,
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "seed": SEED,
                "num_images": ("INT", {"default": 1, "min": 1, "max": 64}),
            },
            "optional": {
                "width": _socket("INT", f"Width in {side}"),
                "height": _socket("INT", f"Height in {side}"),
                **SAMPLING,
                "best_of": _socket("INT", "Candidates drawn for each image; the best by the model is kept."),
                **DECODING,
            },
        }

    CATEGORY = CATEGORY
    DESCRIPTION = "Draws what a prompt says."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "draw"

    def draw(
        self,
        pipeline: pictish.Pipeline,
        prompt: str,
        seed: int,
        num_images: int,
        width: int | None = None,
        height: int | None = None,
        **settings: Any,
    ) -> tuple[Tensor]:
        """(num_images, H, W, 3)."""
        if (width is None) != (height is None):
            raise ValueError("width, height: one of them is connected; both or neither would fit")
        if width is not None and height is not None:
            settings |= {"aspect_ratio": (width, height), "size": max(width, height)}
        drawn = pipeline.generate(prompt, num_images=num_images, seed=seed, callback=_shown(), **settings)
        return (_batch(drawn),)


class EditPictish:
    """Images changed by an instruction."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Each image of the batch is edited."""
        return {
            "required": {
                "pipeline": PIPELINE,
                "images": IMAGES,
                "instruction": ("STRING", {"default": "", "multiline": True}),
                "seed": SEED,
                "keep_unchanged": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Keep pixels where the edit leaves the tokens unchanged."},
                ),
            },
            "optional": {
                **SAMPLING,
                "image_guidance_scale": _socket("FLOAT", "Classifier-free guidance scale of the image."),
                **DECODING,
            },
        }

    CATEGORY = CATEGORY
    DESCRIPTION = "Changes images as an instruction says."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "edit"

    def edit(
        self,
        pipeline: pictish.Pipeline,
        images: Tensor,
        instruction: str,
        seed: int,
        keep_unchanged: bool,
        **settings: Any,
    ) -> tuple[Tensor]:
        """(B, H, W, 3), in the aspect ratio of the images."""
        edited = [
            pipeline.edit(
                image,
                instruction,
                seed=seed + number,
                keep_unchanged=keep_unchanged,
                callback=_shown(),
                **settings,
            )
            for number, image in enumerate(_arrays(images))
        ]
        return (_batch(edited),)


class DescribePictish:
    """Captions of images, or answers about them."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """An empty question asks for captions."""
        return {
            "required": {
                "pipeline": PIPELINE,
                "images": IMAGES,
                "question": (
                    "STRING",
                    {"default": "", "multiline": True, "tooltip": "Leave empty for a caption."},
                ),
            },
            "optional": {"max_new_tokens": _socket("INT", "Maximum number of text tokens.")},
        }

    CATEGORY = CATEGORY
    DESCRIPTION = "Describes images, or answers a question about each."
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("texts",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "describe"

    def describe(
        self, pipeline: pictish.Pipeline, images: Tensor, question: str, max_new_tokens: int | None = None
    ) -> tuple[list[str]]:
        """One text for each image."""
        asked = question if question.strip() else None
        texts = pipeline.describe(_arrays(images), asked, max_new_tokens=max_new_tokens, callback=_shown())
        return (texts,)


class TokenizePictish:
    """The tokens of images."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """At most one socket sets the number of tokens."""
        return {
            "required": {"pipeline": PIPELINE, "images": IMAGES},
            "optional": {
                "budget": _socket("INT", "Exact number of tokens of each image."),
                "threshold": _socket("FLOAT", "Keep patches scored above this, between 0 and 1."),
                "quality": _socket("FLOAT", "Fewest tokens expected to reach this PSNR in dB."),
            },
        }

    CATEGORY = CATEGORY
    DESCRIPTION = "Turns images into tokens."
    RETURN_TYPES = ("PICTISH_TOKENS",)
    RETURN_NAMES = ("tokens",)
    FUNCTION = "tokenize"

    def tokenize(
        self, pipeline: pictish.Pipeline, images: Tensor, **how_many: Any
    ) -> tuple[list[pictish.TokenizedImage]]:
        """A list with the tokens of each image, as one value."""
        return (pipeline.tokenize(_arrays(images), callback=_shown(), **how_many),)


class DetokenizePictish:
    """Images of tokens."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Tokens of the Tokenize node."""
        seed = {**SEED[1], "tooltip": "Seed of the decoder's noise, the same for every image."}
        return {
            "required": {
                "pipeline": PIPELINE,
                "tokens": ("PICTISH_TOKENS", {"tooltip": "Tokens from the Tokenize node."}),
                "seed": ("INT", seed),
            },
            "optional": {"size": _socket("INT", "Longer side of the images in pixels."), **DECODING},
        }

    CATEGORY = CATEGORY
    DESCRIPTION = "Decodes tokens to images."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "detokenize"

    def detokenize(
        self,
        pipeline: pictish.Pipeline,
        tokens: Sequence[pictish.TokenizedImage],
        seed: int,
        **settings: Any,
    ) -> tuple[Tensor]:
        """(B, H, W, 3), in the aspect ratio of the originals."""
        return (_batch(pipeline.detokenize(tokens, seed=seed, callback=_shown(), **settings)),)


NODE_CLASS_MAPPINGS = {
    "PictishLoad": LoadPictish,
    "PictishDraw": DrawPictish,
    "PictishEdit": EditPictish,
    "PictishDescribe": DescribePictish,
    "PictishTokenize": TokenizePictish,
    "PictishDetokenize": DetokenizePictish,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PictishLoad": "Load Pictish Model",
    "PictishDraw": "Pictish Draw",
    "PictishEdit": "Pictish Edit",
    "PictishDescribe": "Pictish Describe",
    "PictishTokenize": "Pictish Tokenize",
    "PictishDetokenize": "Pictish Detokenize",
}


def _models() -> dict[str, str | Path]:
    """What `Pipeline.from_pretrained` takes, by name: the starter, and the folders in models/pictish."""
    installed = sorted(Path(folder_paths.models_dir, "pictish").glob("*/*/config.yaml"))
    return {STARTER: STARTER} | {path.parent.parent.name: path.parent.parent for path in installed}


def _shown() -> Callable[[pictish.Progress], None]:
    """Show each step in ComfyUI's progress bar, which raises when the user has interrupted the workflow."""
    bar = comfy.utils.ProgressBar(1)
    return lambda progress: bar.update_absolute(progress.step, progress.num_steps)


def _arrays(images: Tensor) -> list[np.ndarray]:
    """The images of a batch (B, H, W, C); values that resampling took out of [0, 1] are clipped."""
    return list(images.detach().to("cpu", torch.float32).clamp(0, 1).numpy())


def _batch(images: Sequence[Image.Image]) -> Tensor:
    """A batch (B, H, W, 3) of images of one size; ValueError for several sizes."""
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise ValueError(f"images: sizes {listed} in one batch; images of one size would fit")
    return torch.stack([torch.from_numpy(np.asarray(image, np.float32) / 255) for image in images])
