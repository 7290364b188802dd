"""The report: a page that a browser and a reader can trust, whatever is missing in the run."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mambaad.calibrate import calibrate, kept_beside, save_calibration, with_kept
from mambaad.checkpoint import save_config, save_provenance
from mambaad.config import Config
from mambaad.errors import CheckpointError
from mambaad.evaluate import CategoryResult, Evaluation, Example
from mambaad.metrics import score, summarise
from mambaad.report import read_losses, write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}
SHAPES = {"line", "rect"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what tests ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs))  # an attribute given twice is dropped by browsers
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES | {"polyline"}
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and kind in (None, a.get("class"))]


def example(kind: str, label: int, value: float, *, mask: bool = True) -> Example:
    rng = np.random.default_rng(0)
    marked = np.zeros((32, 40), np.bool_)
    marked[4:9, 5:11] = bool(label)
    return Example(
        path=Path("set/bottle/test/hole/000.png"),
        kind=kind,
        label=label,
        defect="hole" if label else "good",
        score=value,
        picture=rng.integers(0, 255, (32, 40, 3), dtype=np.uint8),
        map=rng.random((32, 40), dtype=np.float32) * value,
        mask=marked if mask else None,
    )


def result(category: str = "bottle", *, masks: bool = True) -> CategoryResult:
    maps = np.zeros((6, 4, 4), np.float32)
    maps[:, 1, 2] = [0.1, 0.2, 0.5, 0.2, 0.6, 0.9]
    truth = np.zeros((6, 4, 4), np.bool_)
    truth[3:, 1, 2] = True
    labels = np.array([0, 0, 0, 1, 1, 1])
    return CategoryResult(
        category=category,
        report=score(maps, truth if masks else None, labels),
        paths=tuple(Path(f"{i}.png") for i in range(6)),
        labels=labels,
        defects=("good",) * 3 + ("hole",) * 3,
        scores=maps.max(axis=(1, 2)),
        threshold=0.25,
        examples=(
            example("best", 1, 0.9, mask=masks),
            example("median", 1, 0.6, mask=masks),
            example("worst", 1, 0.2, mask=masks),
            example("false alarm", 0, 0.5, mask=masks),
        ),
    )


def evaluation(*results: CategoryResult) -> Evaluation:
    return Evaluation("exact", {r.category: r for r in results}, 1.5, 6 * len(results))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with everything in it; the log ends in half a line."""
    folder = tmp_path / "run"
    save_config(folder, Config().override({"data.root": "/data/screws"}))
    save_provenance(folder, {"mambaad": "0.1.0", "commit": None, "date": "2026-03-04T05:06:07"})
    save_calibration(folder, calibrate([0.1, 0.25], ["bottle"] * 2, "held-out training pictures"))
    lines = [
        {"step": s, "loss": 6 / s, "loss_stride4": 4 / s, "loss_stride8": 2 / s,
         "learning_rate": 0.01 if s <= 8 else 0.001, "seconds": 0.5 * s}
        for s in range(1, 11)
    ]  # fmt: skip
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 11, "lo'
    (folder / "metrics.jsonl").write_text(text, "utf-8")
    return folder


def test_page_is_well_formed_and_complete(run: Path) -> None:
    path = write_report(run, evaluation(result()))
    page = Page(path)
    assert path == run / "report.html"
    for word in (
        "screws",
        "resnet34",
        "2026-03-04",
        "protocol exact",
        "held-out training pictures",
    ):
        assert word in page.text
    assert "learning rate 0.01 → 0.001" in page.text
    assert len(page.all("polyline")) == 2 * 3  # for a desk and for a phone: loss and two parts
    assert page.all("svg")[0]["aria-label"] == (
        "Scores of bottle: 3 good pictures upwards, 3 defective ones downwards"
    )
    assert all(a.get("scope") for a in page.all("th"))
    assert len(page.all("details")) == 2


def test_nothing_comes_from_outside_the_file(run: Path) -> None:
    page = Page(write_report(run, evaluation(result())))
    addresses = [a[k] for _, a in page.tags for k in ("src", "href", "xlink:href") if k in a]
    assert addresses
    assert all(a is not None and a.startswith(("data:image/", "#")) for a in addresses)
    assert not re.search(r"url\(|@import|<script|<link", page.source)
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {a[1:] for a in addresses if a is not None and a.startswith("#")} <= targets


def test_examples_are_pictures_with_words(run: Path) -> None:
    page = Page(write_report(run, evaluation(result("a"), result("b"))))
    pictures = page.all("img")
    # three defective ones in three views, and a good one in two, in each of two categories
    assert len(pictures) == 2 * (3 * 3 + 2)
    assert all(p["alt"] for p in pictures)
    encoded = str(pictures[0]["src"]).removeprefix("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (40, 32)
    assert (pictures[0]["width"], pictures[0]["height"]) == ("40", "32")


def test_decisions_are_counted(run: Path) -> None:
    page = Page(write_report(run, evaluation(result())))
    assert "of 3 good pictures, 33.3 %" in page.text
    assert "of 3 defective pictures, 33.3 %" in page.text
    assert "bottle 0.250 3 1 33.3 % 3 1 33.3 %" in page.text
    verdicts = re.findall(r'class="pill \w+">([^<]+)<', page.source)
    assert verdicts == ["found", "found", "missed", "false alarm"]


def test_category_that_the_calibration_does_not_know_is_marked(run: Path) -> None:
    page = Page(write_report(run, evaluation(result("bottle"), result("cork"))))
    assert "cork 0.250 overall 3" in page.text
    assert page.text.count("overall") == 1


def test_thresholds_of_several_origins_say_each_its_own(run: Path) -> None:
    whole = Page(write_report(run, evaluation(result("bottle"))))
    assert "is the 0.99 quantile of the scores of 2 held-out training pictures" in whole.text
    assert "quantile of 2" not in whole.text
    old = calibrate([0.1, 0.25, 0.2], ["bottle", "bottle", "nut"], "held-out training pictures")
    new = calibrate([0.3] * 4, ["cookie"] * 4, "good pictures given afterwards", 0.5)
    save_calibration(run, with_kept(new, kept_beside(old, {"cookie"}, "float32")))
    results = [result(name) for name in ("bottle", "cookie", "cork")]
    page = Page(write_report(run, evaluation(*results)))
    assert "bottle 0.250 0.99 quantile of 2 held-out training pictures 3" in page.text
    assert "cookie 0.250 0.5 quantile of 4 good pictures given afterwards 3" in page.text
    assert "cork 0.250 overall 3" in page.text
    assert "The threshold is the" not in page.text
    assert "or kept from before" not in page.text
    assert "learned from its training pictures" not in page.text
    assert "under each is said which quantile" in page.text


def test_a_threshold_set_by_hand_is_said_to_be(run: Path) -> None:
    known = calibrate([0.1, 0.2465, 0.3], ["bottle", "bottle", "nut"], "training pictures")
    edited = replace(known.categories["bottle"], threshold=0.249)
    both = {**known.categories, "bottle": edited}
    save_calibration(run, replace(known, categories=both))
    page = Page(write_report(run, evaluation(result("bottle"), result("nut"))))
    assert "bottle 0.250 set by hand 3" in page.text
    assert "nut 0.250 3" in page.text
    assert "The threshold is the 0.99 quantile of the scores of 3 training pictures" in page.text
    assert "Where 'set by hand' stands under it, somebody has changed it there." in page.text
    page = Page(write_report(run, evaluation(result("bottle"))))
    assert "quantile" not in page.text
    assert "It was set by hand in calibration.json." in page.text
    new = calibrate([0.3], ["nut"], "good pictures given afterwards")
    kept = kept_beside(replace(known, categories=both), {"nut"}, "float32")
    save_calibration(run, with_kept(new, kept))
    page = Page(write_report(run, evaluation(result("bottle"), result("nut"))))
    assert "bottle 0.250 set by hand 3" in page.text


def test_thresholds_of_training_pictures_are_said_to_be_low(run: Path) -> None:
    old = calibrate([0.1, 0.2], ["bottle", "nut"], "training pictures")
    save_calibration(run, old)
    low = "learned from its training pictures and scores them lower"
    assert low in Page(write_report(run, evaluation(result()))).text
    new = calibrate([0.3], ["nut"], "good pictures given afterwards")
    save_calibration(run, with_kept(new, kept_beside(old, {"nut"}, "float32")))
    assert low in Page(write_report(run, evaluation(result("bottle"), result("nut")))).text
    assert low not in Page(write_report(run, evaluation(result("nut")))).text


def test_text_is_escaped(run: Path) -> None:
    name = '<b>"x" & y</b>'
    page = Page(write_report(run, evaluation(result(name)), name="<i>set</i>"))
    assert not page.all("b")
    assert not page.all("i", None if page.all("i", "x") else "x")
    assert name in page.text
    assert "<i>set</i> mAD" in page.text


def test_undefined_metrics_say_why(run: Path) -> None:
    page = Page(write_report(run, evaluation(result("a"), result("b", masks=False))))
    undefined = [a for a in page.all("td") if a.get("title") == "no masks"]
    assert len(undefined) == 4 + 4  # and of the further metrics
    assert "mean of 1 of 2 categories; undefined in b" in page.text
    assert page.source.count("<figcaption>no mask</figcaption>") == 3
    assert len(page.all("img")) == (3 * 3 + 2) + 4 * 2


def test_further_metrics_have_a_table(run: Path) -> None:
    one = result("a")
    pixels = replace(
        summarise(*one_region(), threshold=0.25), pixel_IoUmax=0.123, pixel_AUPIMO=0.456
    )
    full = replace(one, pixels=pixels, groups=tuple("abcdef"))
    page = Page(write_report(run, evaluation(full, result("b", masks=False))))
    assert "12.3" in page.text
    assert "45.6" in page.text
    for name in ("IoU-max", "AUPRO to 0.05", "F1 at threshold", "AUPIMO", "AUROC of objects"):
        assert name in page.text
    assert "AUROC of objects" not in Page(write_report(run, evaluation(one))).text


def one_region() -> tuple[np.ndarray, np.ndarray]:
    maps, masks = np.zeros((2, 4, 4)), np.zeros((2, 4, 4), np.bool_)
    masks[0, 1, 2] = True
    return maps + masks, masks


def test_run_without_log_calibration_and_provenance(run: Path) -> None:
    for name in ("metrics.jsonl", "calibration.json", "provenance.json"):
        (run / name).unlink()
    bare = replace(result(), threshold=None)
    page = Page(write_report(run, evaluation(bare)))
    assert "This run has no training log" in page.text
    assert "This run has no thresholds" in page.text
    assert "the hottest colour is the highest score" in page.text
    assert not page.all("line", "rule")
    assert len(page.all("details")) == 1
    assert 'class="pill' not in page.source


def test_threshold_of_zero_does_not_break_the_colours(run: Path) -> None:
    page = Page(write_report(run, evaluation(replace(result(), threshold=0.0))))
    assert len(page.all("img")) == 11


def test_category_without_defective_pictures(run: Path) -> None:
    full = result()
    only = replace(
        full,
        report=score(np.zeros((3, 4, 4)), np.zeros((3, 4, 4), np.bool_), np.zeros(3)),
        labels=full.labels[:3],
        scores=full.scores[:3],
        examples=full.examples[3:],
    )
    page = Page(write_report(run, evaluation(only)))
    assert "bottle 0.250 3 1 33.3 % 0 0 –" in page.text
    assert len(page.all("img")) == 2


def test_file_is_replaced_whole_or_not_at_all(run: Path) -> None:
    write_report(run, evaluation(result()))
    before = (run / "report.html").read_bytes()
    flat = replace(example("best", 1, 0.9), map=np.ones(3, np.float32))
    broken = replace(result(), examples=(flat,))
    with pytest.raises(ValueError, match="map must have shape"):
        write_report(run, evaluation(broken))
    assert (run / "report.html").read_bytes() == before
    write_report(run, evaluation(result("other")))
    assert b"other" in (run / "report.html").read_bytes()
    assert not list(run.glob(".report*"))


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        write_report(tmp_path, evaluation(result()))


@pytest.mark.parametrize("text", ["{", "[1]", "[]"])
def test_damaged_provenance_is_named(run: Path, text: str) -> None:
    (run / "provenance.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"provenance\.json"):
        write_report(run, evaluation(result()))


def test_losses_of_a_log(run: Path) -> None:
    losses = read_losses(run / "metrics.jsonl")
    assert losses is not None
    assert losses.steps.tolist() == list(range(1, 11))  # without the half line
    assert list(losses.curves) == ["total", "stride 4", "stride 8"]
    assert losses.curves["total"][:2].tolist() == [6.0, 3.0]
    assert losses.drops == ((9.0, "learning rate 0.01 → 0.001"),)
    assert losses.seconds == 5.0
    assert np.isnan(losses.images_per_second)


def test_losses_that_are_not_finite_or_written_twice(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 9}\n{"step": 2, "loss": NaN}\n5\n{"step": 1, "loss": 7}\n')
    losses = read_losses(log)
    assert losses is not None
    assert losses.curves["total"].tolist() == [7.0]  # the later record of a step counts
    log.write_text("\n")
    assert read_losses(log) is None
    assert read_losses(tmp_path / "none") is None


def test_one_step_is_a_training_too(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n')
    assert "from 0 to 0" in write_report(run, evaluation(result())).read_text("utf-8")
