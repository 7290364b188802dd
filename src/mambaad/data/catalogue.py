"""The published data sets: what is in them, and where they are had.

Counts are of the training pictures that multi-class papers train on, and of all test pictures, as
usually published; a copy that differs may also be another edition. What is not known is None.

How sure they are: the totals of the paper's six sets are those of the papers' tables. The counts by
category of MVTec AD, MVTec 3D-AD and Uni-Medical are known to agree with the totals in sum.
Those of BTAD and MPDD have been compared with nothing; their remarks say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mambaad.errors import ConfigError

NON_COMMERCIAL = "CC BY-NC-SA 4.0"
UNKNOWN_LICENCE = "see its page"


@dataclass(frozen=True)
class Counts:
    """Numbers of pictures."""

    train: int
    test: int
    """Good and defective ones."""

    defective: int | None
    """Of the test; None if not known."""


@dataclass(frozen=True)
class PublishedSet:
    """A data set that others publish figures on."""

    name: str
    """What ``mambaad check --expect`` calls it."""

    title: str
    layout: str
    """A name from ``mambaad.data.layouts.LAYOUTS``."""

    licence: str
    """Of the pictures; as stated by the set, not advice."""

    source: str
    """Where to get it."""

    categories: Mapping[str, Counts | None]
    """By the name of its folder."""

    total: Counts | None
    remark: str = ""
    is_part: bool = False
    """Whether the set has more categories than those named; the total is then of these."""


def _counts(lines: str) -> dict[str, Counts | None]:
    """Lines of a category's name, training pictures, good and defective test pictures."""
    rows = [line.split() for line in lines.split("\n") if line.strip()]
    return {n: Counts(int(t), int(g) + int(d), int(d)) for n, t, g, d in rows}


def _uncounted(names: str) -> dict[str, Counts | None]:
    return dict.fromkeys(names.split())


def _mvtec_page(name: str) -> str:
    return f"https://www.mvtec.com/company/research/datasets/{name}"


_MVTEC_AD = PublishedSet(
    name="mvtec-ad",
    title="MVTec AD",
    layout="mvtec",
    licence=NON_COMMERCIAL,
    source=_mvtec_page("mvtec-ad"),
    categories=_counts(
        """
        bottle 209 20 63
        cable 224 58 92
        capsule 219 23 109
        carpet 280 28 89
        grid 264 21 57
        hazelnut 391 40 70
        leather 245 32 92
        metal_nut 220 22 93
        pill 267 26 141
        screw 320 41 119
        tile 230 33 84
        toothbrush 60 12 30
        transistor 213 60 40
        wood 247 19 60
        zipper 240 32 119
        """
    ),
    total=Counts(3629, 1725, 1258),
)
_VISA = PublishedSet(
    name="visa",
    title="VisA",
    layout="visa",
    licence="CC BY 4.0",
    source="https://github.com/amazon-science/spot-diff (VisA_20220922.tar)",
    categories=_counts(
        """
        candle 900 100 100
        capsules 542 60 100
        cashew 450 50 100
        chewinggum 453 50 100
        fryum 450 50 100
        macaroni1 900 100 100
        macaroni2 900 100 100
        pcb1 904 100 100
        pcb2 901 100 100
        pcb3 905 101 100
        pcb4 904 101 100
        pipe_fryum 450 50 100
        """
    ),
    total=Counts(8659, 2162, 1200),
    remark="masks look black: they hold small numbers, every value above 0 is defective",
)
_REAL_IAD = PublishedSet(
    name="real-iad",
    title="Real-IAD, all five views",
    layout="real-iad",
    licence=NON_COMMERCIAL,
    source="https://realiad4ad.github.io/Real-IAD (the categories and the zip of json files)",
    categories=_uncounted(
        "audiojack bottle_cap button_battery end_cap eraser fire_hood mint mounts pcb "
        "phone_battery plastic_nut plastic_plug porcelain_doll regulator rolled_strip_base "
        "sim_card_set switch tape terminalblock toothbrush toy toy_brick transistor1 u_block usb "
        "usb_adaptor vcpill wooden_beads woodstick zipper"
    ),
    total=Counts(36465, 114585, 51329),
    remark="pictures in NG/ may be good: the json files say which; the masks of the resized "
    "pictures have soft edges, and as every value above 0 counts, they are a little wider than "
    "drawn, in published figures too",
)
_REAL_IAD_SINGLE = replace(
    _REAL_IAD,
    name="real-iad-single",
    title="Real-IAD, view C1 alone",
    layout="real-iad-single",
    total=Counts(10408, 19802, 9415),
)
_MVTEC_3D = PublishedSet(
    name="mvtec-3d",
    title="MVTec 3D-AD, colour, train and validation",
    layout="mvtec-3d",
    licence=NON_COMMERCIAL,
    source=_mvtec_page("mvtec-3d-ad"),
    categories=_counts(
        """
        bagel 266 22 88
        cable_gland 246 21 87
        carrot 315 27 132
        cookie 232 28 103
        dowel 322 26 104
        foam 263 20 80
        peach 403 26 106
        potato 333 22 92
        rope 331 32 69
        tire 239 25 87
        """
    ),
    total=Counts(2950, 1197, 948),
    remark="published multi-class figures train on train and validation",
)
_MVTEC_3D_STRICT = replace(
    _MVTEC_3D,
    name="mvtec-3d-strict",
    title="MVTec 3D-AD, colour, train alone",
    layout="mvtec-3d-strict",
    categories=_counts(
        """
        bagel 244 22 88
        cable_gland 223 21 87
        carrot 286 27 132
        cookie 210 28 103
        dowel 288 26 104
        foam 236 20 80
        peach 361 26 106
        potato 300 22 92
        rope 298 32 69
        tire 210 25 87
        """
    ),
    total=Counts(2656, 1197, 948),
)
_UNI_MEDICAL = PublishedSet(
    name="uni-medical",
    title="Uni-Medical",
    layout="mvtec",
    licence=f"{NON_COMMERCIAL} (BMAD's); its sources have terms of their own",
    source="the link in data/README of https://github.com/zhangzjn/ADer",
    categories=_counts(
        """
        brain 7500 640 3075
        liver 1542 833 660
        retinal 4297 1041 764
        """
    ),
    total=Counts(13339, 7013, 4499),
)
_BMAD = PublishedSet(
    name="bmad",
    title="BMAD, the three sets with masks",
    layout="bmad",
    licence=_UNI_MEDICAL.licence,
    source="https://github.com/DorisBao/BMAD",
    categories={
        "Brain": _UNI_MEDICAL.categories["brain"],
        "Liver": _UNI_MEDICAL.categories["liver"],
        "Retina_RESC": _UNI_MEDICAL.categories["retinal"],
    },
    total=_UNI_MEDICAL.total,
    remark="its sets without masks are read too",
    is_part=True,
)
_COCO_AD = PublishedSet(
    name="coco-ad-0",
    title="COCO-AD, split 0 of 0 to 3",
    layout="coco-ad-0",
    licence="annotations CC BY 4.0; pictures have Flickr's terms",
    source="https://cocodataset.org (2017), then: mambaad prepare coco-ad COCO",
    categories={"coco": Counts(30438, 4952, None)},
    total=Counts(30438, 4952, None),
    remark="the paper's figure is the mean of four models, one a split",
)
_COCO_TRAIN = {1: 65133, 2: 79083, 3: 77580}
_MVTEC_LOCO = PublishedSet(
    name="mvtec-loco",
    title="MVTec LOCO AD",
    layout="mvtec-loco",
    licence=NON_COMMERCIAL,
    source=_mvtec_page("mvtec-loco"),
    categories=_counts(
        """
        breakfast_box 351 102 173
        juice_bottle 335 94 236
        pushpins 372 138 172
        screw_bag 360 122 219
        splicing_connectors 360 119 193
        """
    ),
    total=Counts(1778, 1568, 993),
    remark="validation is left out, as its protocol has it",
)
_MVTEC_AD_2 = PublishedSet(
    name="mvtec-ad-2",
    title="MVTec AD 2",
    layout="mvtec-ad-2",
    licence=NON_COMMERCIAL,
    source=_mvtec_page("mvtec-ad-2"),
    categories=_uncounted("can fabric fruit_jelly rice sheet_metal vial wallplugs walnuts"),
    total=None,
    remark="the test is test_public; the private tests are scored by MVTec's server",
)
_BTAD = PublishedSet(
    name="btad",
    title="BTAD",
    layout="mvtec",
    licence=UNKNOWN_LICENCE,
    source="http://avires.dimi.uniud.it/papers/btad/btad.zip",
    categories=_counts(
        """
        01 400 21 49
        02 399 30 200
        03 1000 400 41
        """
    ),
    total=Counts(1799, 741, 290),
    remark="the counts have not been compared with a copy",
)
_MPDD = PublishedSet(
    name="mpdd",
    title="MPDD",
    layout="mvtec",
    licence=UNKNOWN_LICENCE,
    source="https://github.com/stepanje/MPDD",
    categories=_counts(
        """
        bracket_black 289 32 47
        bracket_brown 185 26 51
        bracket_white 110 30 30
        connector 128 30 14
        metal_plate 54 26 71
        tubes 122 32 69
        """
    ),
    total=Counts(888, 458, 282),
    remark="the counts have not been compared with a copy",
)


def _coco(split: int, train: int) -> PublishedSet:
    counts = Counts(train, 4952, None)
    return replace(
        _COCO_AD,
        name=f"coco-ad-{split}",
        title=f"COCO-AD, split {split}",
        layout=f"coco-ad-{split}",
        categories={"coco": counts},
        total=counts,
    )


PUBLISHED: dict[str, PublishedSet] = {
    known.name: known
    for known in (
        _MVTEC_AD,
        _VISA,
        _REAL_IAD,
        _REAL_IAD_SINGLE,
        _MVTEC_3D,
        _MVTEC_3D_STRICT,
        _UNI_MEDICAL,
        _COCO_AD,
        *(_coco(split, train) for split, train in _COCO_TRAIN.items()),
        _BMAD,
        _MVTEC_LOCO,
        _MVTEC_AD_2,
        _BTAD,
        _MPDD,
    )
}
"""Every known set by its name; the paper's six first."""


def published(name: str) -> PublishedSet:
    """A known set.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in PUBLISHED:
        raise ConfigError(f"no published data set {name!r} is known; known: {list(PUBLISHED)}")
    return PUBLISHED[name]
