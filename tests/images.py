"""Handwritten digits as image files, and a small random vision transformer for them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.models import randomise


def digit_folder(folder: Path, count: int = 200) -> str:
    """The first digits of scikit-learn's data set, one folder a class; the folder's path."""
    pixels, labels = load_digits(return_X_y=True)
    for index in range(count):
        image = Image.fromarray((pixels[index].reshape(8, 8) * 15.9).astype("uint8"), mode=None)
        place = folder / f"digit{labels[index]}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index:04d}.png")
    return str(folder)


def vision_model_folder(folder: Path) -> str:
    """Two blocks, hidden size 32, images of 8 x 8 shades of grey in patches of 4 x 4; the folder's path."""
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, id2label={index: f"digit{index}" for index in range(10)},
        label2id={f"digit{index}": index for index in range(10)},
    )  # fmt: skip
    randomise(ViTForImageClassification(config)).save_pretrained(folder)
    processor = ViTImageProcessorPil(do_resize=False, size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(folder)
    return str(folder)
