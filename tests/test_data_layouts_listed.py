"""Lists are parsed once for each reading of a data set, and anew for the next."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from trees import lay

from mambaad.data.layouts import find_categories, keys, read_dataset
from mambaad.data.layouts.listed import once, parsed_once
from mambaad.errors import DatasetError

META = {"train": {"nut": [{"img_path": "0.png", "mask_path": "", "anomaly": 0}]}}
LISTS = {
    "samples.csv": "image_path,label_index,category\n0.png,0,nut\n",
    "split_csv/1cls.csv": "object,split,label,image,mask\nnut,train,normal,0.png,\n",
    "meta.json": json.dumps(META),
    "meta_20_0.json": json.dumps(META),
    "folder.toml": 'name = "nut"\nnormal_dir = "."\n',
}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every list that is parsed."""
    calls: list[str] = []
    real: tuple[Any, Any, Any] = (csv.DictReader, json.loads, keys.tomllib.loads)

    def counting(call: Any) -> Any:
        def count(*arguments: Any) -> Any:
            calls.append(call.__name__)
            return call(*arguments)

        return count

    monkeypatch.setattr(csv, "DictReader", counting(real[0]))
    monkeypatch.setattr(json, "loads", counting(real[1]))
    monkeypatch.setattr(keys.tomllib, "loads", counting(real[2]))
    return calls


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_parsed_once(tmp_path: Path, parsed: list[str], name: str) -> None:
    lay(tmp_path, "0.png", "nut/0.png", name)
    (tmp_path / name).write_text(LISTS[name])
    dataset = read_dataset(tmp_path)
    assert (dataset.categories, len(parsed)) == (("nut",), 1)
    assert read_dataset(tmp_path) == dataset
    assert len(parsed) == 2
    find_categories(tmp_path, dataset.layout)
    find_categories(tmp_path, dataset.layout)
    assert len(parsed) == 4


def test_a_changed_list_is_read_anew(tmp_path: Path) -> None:
    table = lay(tmp_path, "0.png") / "samples.csv"
    for category in ("nut", "pin"):  # the same size, and perhaps the same time
        table.write_text(f"image_path,label_index,category\n0.png,0,{category}\n")
        assert read_dataset(tmp_path).categories == (category,)


def test_nothing_is_kept_of_a_reading_that_failed(tmp_path: Path) -> None:
    table = tmp_path / "samples.csv"
    table.write_text(LISTS["samples.csv"])
    with pytest.raises(DatasetError, match="not there"):
        read_dataset(tmp_path)
    table.write_text(LISTS["samples.csv"].replace("nut", "pin"))
    assert list(find_categories(tmp_path, "csv")) == ["pin"]


def test_two_parsers_of_a_file_do_not_mix() -> None:
    suffix, stem = once(lambda path: path.suffix), once(lambda path: path.stem)
    with parsed_once():
        found = [parse(Path(name)) for name in ("a.b", "c.d", "a.b") for parse in (suffix, stem)]
    assert found == [".b", "a", ".d", "c", ".b", "a"]
