"""The names that ``data.layout`` can have; ``mambaad.data.layouts`` holds what they stand for."""

from __future__ import annotations

from typing import Literal

Layout = Literal[
    "auto",
    "csv",
    "keys",
    "visa",
    "real-iad",
    "real-iad-single",
    "coco-ad-0",
    "coco-ad-1",
    "coco-ad-2",
    "coco-ad-3",
    "mvtec-3d",
    "mvtec-3d-strict",
    "mvtec-loco",
    "mvtec-ad-2",
    "bmad",
    "mvtec",
    "meta",
    "folder",
]
