"""Data sets on disk: finding the pictures, reading them, keeping them, checking them.

``samples`` says what a data set is, ``layouts`` how one lies on disk, ``images`` how a file becomes
an array, ``cache`` keeps arrays between epochs, ``memory`` says where there is room for them,
``check`` what is wrong with a data set.
"""

from __future__ import annotations

from mambaad.config import IMAGENET_MEAN, IMAGENET_STD
from mambaad.data.cache import PictureStore, cache_folder, fingerprint
from mambaad.data.check import CategoryCounts, CheckResult, Problem, check_dataset
from mambaad.data.images import (
    PICTURE_SUFFIXES,
    load_mask,
    load_picture,
    picture_from_array,
    picture_from_image,
    resize_picture,
)
from mambaad.data.layouts import READERS, list_pictures, read_dataset
from mambaad.data.memory import available_memory, choose_cache
from mambaad.data.samples import Dataset, Sample, Split

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PICTURE_SUFFIXES",
    "READERS",
    "CategoryCounts",
    "CheckResult",
    "Dataset",
    "PictureStore",
    "Problem",
    "Sample",
    "Split",
    "available_memory",
    "cache_folder",
    "check_dataset",
    "choose_cache",
    "fingerprint",
    "list_pictures",
    "load_mask",
    "load_picture",
    "picture_from_array",
    "picture_from_image",
    "read_dataset",
    "resize_picture",
]
