"""A model card: what a density model is, how good it is, how it was made and how it is used, from a file's notes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..base.checks import is_number
from ..training.provenance import training_parts, training_summary

CARD = """---
library_name: pxfast
{metadata}tags:
- pixelcnn
- density-estimation
- adversarial-purification
---

# PixelCNN++ of {images}

A density model of images for [PixelDefend](https://arxiv.org/abs/1710.10766): it says how likely an image is, purifies
images of small adversarial changes, and draws new ones. pxfast wrote it, and reads it.

| | |
|---|---|
{facts}

## How to use it

```sh
pip install 'pxfast[hub]'
```

```python
import pxfast

model = pxfast.PixelCNN.from_pretrained("{name}")  # or this folder
purified = pxfast.purify(images, eps=16, model=model)  # images: uint8 (N, {shape}), or floating in [0, 1]
bits = pxfast.bits_per_dim(images, model=model)  # the lower, the likelier
drawn = pxfast.sample(8, model=model, seed=0)
```

`model.safetensors` holds weights, configuration and notes; nothing in it is ever executed. `config.json` repeats the
configuration.

## Training

{training}

## Limits

- It takes images of (C, H, W) = ({shape}) and no others, and judges them by {dataset_words} alone.
- Likely images are not safe ones. Purification helps against attacks that do not know of it, and is not secure against
  an attack that does (Athalye et al. 2018). Use it to study defences and attacks, not as a lock.

## Licence

{licence}

## Citation

```bibtex
@inproceedings{{song2018pixeldefend,
  title = {{PixelDefend: Leveraging Generative Models to Understand and Defend against Adversarial Examples}},
  author = {{Song, Yang and Kim, Taesup and Nowozin, Sebastian and Ermon, Stefano and Kushman, Nate}},
  booktitle = {{International Conference on Learning Representations}},
  year = {{2018}}
}}
@inproceedings{{salimans2017pixelcnn,
  title = {{PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications}},
  author = {{Salimans, Tim and Karpathy, Andrej and Chen, Xi and Kingma, Diederik P.}},
  booktitle = {{International Conference on Learning Representations}},
  year = {{2017}}
}}
```
"""


def model_card(config: Any, parameters: int, notes: Mapping[str, Any], name: str) -> str:
    """README.md of a model. config: a PixelCNNConfig. parameters: how many. notes: of its file. name: on the Hub."""
    dataset, licence = (_line(notes.get(each)) for each in ("dataset", "license"))
    shape = ", ".join(map(str, (config.channels, *config.image_size)))
    metadata = f"license: {json.dumps(licence.lower())}\n" if licence else ""
    metadata += f"datasets:\n- {json.dumps(dataset)}\n" if dataset else ""
    return CARD.format(
        metadata=metadata,
        name=name,
        images=dataset or f"({shape}) images",
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(config, parameters, dataset, notes)),
        shape=shape,
        training=_training(notes),
        dataset_words=dataset or "the images that it was trained on",
        licence=f"The weights: {licence}." if licence else "The weights' licence is not noted; ask whoever made them.",
    )


def _line(value: object) -> str:
    """A note as a word or words of a table: of one line, short, and of nothing that Markdown would take apart."""
    return " ".join(str(value).split())[:100].translate(str.maketrans("|<>`", "////")) if value is not None else ""


def _facts(config: Any, parameters: int, dataset: str, notes: Mapping[str, Any]) -> list[tuple[str, str]]:
    bits, images = notes.get("test_bits_per_dim"), notes.get("test_images")
    measured = "not measured"
    if is_number(bits):
        measured = f"{bits:.4f}" + (f", mean of {images:,} test images" if is_number(images) else "")
    return [
        ("data set", dataset or "not noted"),
        ("bits/dim", measured),
        ("images", f"(C, H, W) = ({', '.join(map(str, (config.channels, *config.image_size)))}), 0..255"),
        ("head", f"{config.head}, {config.mixtures} mixtures" if config.head != "softmax" else config.head),
        ("network", f"filters {config.filters}, resnets {config.resnets}, {parameters / 1e6:.2f} M parameters"),
    ]


def _training(notes: Mapping[str, Any]) -> str:
    summary = training_summary(notes)
    if summary is None:
        return "The file has no notes of its training."
    lines = [
        f"{summary}.",
        "",
        "| run | filters | steps | images | seconds | batch | optimiser | schedule | seed | machine |",
        "|---:|---:|---:|---:|---:|---:|---|---|---:|---|",
    ]
    for number, part in enumerate(training_parts(dict(notes)), 1):
        network, training = (_table(part.get(name)) for name in ("network", "training"))
        values = (
            network.get("filters"),
            *(part.get(name) for name in ("steps", "images_seen", "seconds")),
            *(training.get(name) for name in ("batch_size", "optimiser", "schedule", "seed")),
            part.get("machine"),
        )
        lines.append(f"| {number} | " + " | ".join(_line(value) for value in values) + " |")
    return "\n".join(lines)


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
