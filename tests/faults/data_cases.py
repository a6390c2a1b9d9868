"""Bad data sets: a small honest one, and one thing done to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faults.case import Case
from PIL import Image

SIZE = (96, 64)  # width, height of the honest images


def write_honest(folder: Path) -> dict[str, Any]:
    """Two images with three boxes of two classes below ``folder``; returns what the json holds."""
    (folder / "images").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)).save(
            folder / "images" / name
        )
    content = {
        "images": [{"id": i, "file_name": f, "width": 96, "height": 64} for i, f in ((1, "a.jpg"), (2, "b.jpg"))],
        "categories": [{"id": 1, "name": "car"}, {"id": 3, "name": "bus"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": 400, "iscrowd": 0}
            for i, image, category, box in (
                (1, 1, 1, [10, 10, 20, 20]),
                (2, 1, 3, [40, 20, 20, 20]),
                (3, 2, 1, [5, 5, 20, 20]),
            )
        ],
    }
    write_json(folder, content)
    return content


def write_json(folder: Path, content: Any) -> None:
    """The annotations."""
    (folder / "train.json").write_text(json.dumps(content))


def _json(what: str, where: str, change: Callable[[dict[str, Any]], object], *says: str) -> Case:
    def make(folder: Path) -> None:
        content = write_honest(folder)
        change(content)
        write_json(folder, content)

    return Case(what, where, ("train.json", *says), 1, make)


def _text(what: str, text: str, *says: str) -> Case:
    def make(folder: Path) -> None:
        write_honest(folder)
        (folder / "train.json").write_bytes(text.encode("latin-1"))

    return Case(what, "train.json", ("train.json", *says), 1, make)


def _box(what: str, box: Any, *says: str) -> Case:
    return _json(what, "annotations[0].bbox", lambda c: c["annotations"][0].update(bbox=box), "annotation 1", *says)


def _row(what: str, where: str, value: Any, *says: str) -> Case:
    """One field of the first entry of a list, such as ``images[0].width``."""
    rows, field = where.split("[0].")
    return _json(what, where, lambda c: c[rows][0].update({field: value}), *says)


def _without(rows: str, field: str) -> Case:
    return _json(f"no {field}", f"{rows}[0]", lambda c: c[rows][0].pop(field), f"{rows}[0]", f"has no {field}")


def _image(what: str, make_image: Callable[[Path], object], *says: str, code: int = 1, **record: Any) -> Case:
    """Another first image; ``record`` changes its entry in the json."""

    def make(folder: Path) -> None:
        content = write_honest(folder)
        name = record.get("file_name", "a.jpg")
        (folder / "images" / "a.jpg").unlink()
        make_image(folder / "images" / name)
        content["images"][0].update(record)
        write_json(folder, content)

    return Case(what, record.get("file_name", "a.jpg"), says, code, make)


def _pixels(width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), 90, np.uint8))


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    _pixels().save(path, exif=exif)


def _cut(path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(data).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _film(path: Path) -> None:
    frames = [_pixels().convert("P"), Image.new("P", SIZE, 7)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((SIZE[1], SIZE[0]), 40000, np.uint16)).save(path)


def _huge(path: Path) -> None:
    """The header of an image of 20 000 x 20 000 px, without its gigabyte of pixels."""
    Image.new("1", (20_000, 20_000)).save(path, compress_level=9)


JSON_CASES = [
    _text("cut in the middle", '{"images": [{"id": 1, "file_na', "not valid json", "char"),
    _text("empty file", "", "not valid json"),
    _text("not UTF-8", '{"images": "\xe9\xff"}', "not valid json"),
    _text("a list", "[1, 2]", "holds a list"),
    _text("brackets without end", "[" * 100_000, "not valid json"),
    _text("results instead of annotations", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "holds a list"),
    _json("wrong key", "images", lambda c: c.update(photos=c.pop("images")), "no list 'images'", "photos"),
    *(
        _row(what, "annotations[0].segmentation", shape, "annotation 1", "segmentation", "polygons")
        for what, shape in (
            ("number instead of polygons", 7),
            ("numbers instead of polygons", [1, 2, 3]),
            ("text in a polygon", [[1, 2, "3", 4, 5, 6]]),
            ("polygon not a number", [[1, 2, float("nan"), 4, 5, 6]]),
            ("mask without a size", {"counts": [96 * 64]}),
            ("mask of more runs than pixels", {"size": [64, 96], "counts": [10, 96 * 64]}),
        )
    ),
    _json("no images", "images", lambda c: c.update(images=[]), "no list 'images'"),
    _json("no boxes at all", "annotations", lambda c: c.update(annotations=[]), "no list 'annotations'"),
    _json("no classes", "categories", lambda c: c.update(categories=[]), "no list 'categories'"),
    _json("object instead of a list", "images", lambda c: c.update(images={"1": "a.jpg"}), "no list 'images'"),
    _json("number instead of an entry", "images[1]", lambda c: c["images"].__setitem__(1, 7), "images[1]", "is 7"),
    _without("images", "file_name"),
    _without("images", "width"),
    _without("annotations", "bbox"),
    _without("annotations", "image_id"),
    _without("annotations", "area"),
    _without("annotations", "iscrowd"),
    _without("categories", "name"),
    _json("image id twice", "images[1].id", lambda c: c["images"][1].update(id=1), "id 1 occurs more than once"),
    _json("box id twice", "annotations[1].id", lambda c: c["annotations"][1].update(id=1), "id 1 occurs more"),
    _json("class id twice", "categories[1].id", lambda c: c["categories"][1].update(id=1), "id 1 occurs more"),
    _row("list as id", "images[0].id", [1], "images[0]", "id [1]"),
    _row("no id", "annotations[0].id", None, "annotations[0]", "id None"),
    _row("box of an unknown image", "annotations[0].image_id", 99, "annotation 1", "image_id 99"),
    _row("box of an unknown class", "annotations[0].category_id", 2, "annotation 1", "category_id 2"),
    _row("negative area", "annotations[0].area", -4, "area -4"),
    _row("area that is not a number", "annotations[0].area", float("nan"), "area nan"),
    _row("crowd that is neither 0 nor 1", "annotations[0].iscrowd", 2, "iscrowd 2"),
    _row("text as width", "images[0].width", "96", "width '96'"),
    _row("negative height", "images[0].height", -64, "height -64"),
    _row("number as file name", "images[0].file_name", 5, "file_name 5"),
    _row("zero byte in a file name", "images[0].file_name", "a\0.jpg", "file_name 'a"),
    _row("class without a name", "categories[0].name", "", "name ''"),
    _box("negative width", [10, 10, -20, 20], "-20", "above 0"),
    _box("no height", [10, 10, 20, 0], "without area"),
    _box("infinite", [10, 10, float("inf"), 20], "inf", "finite"),
    _box("not a number", [float("nan"), 10, 20, 20], "nan", "finite"),
    _box("beyond all numbers", [10, 10, 10**400, 20], "finite"),
    _box("text", ["10", "10", "20", "20"], "'10'", "four finite numbers"),
    _box("three numbers", [10, 10, 20], "[10, 10, 20]"),
    _box("an object", {"x": 1, "y": 2, "w": 3, "h": 4}, "four finite numbers"),
    _box("nothing", None, "bbox None"),
]

IMAGE_CASES = [
    _image("missing", lambda p: None, "a.jpg"),
    _image("empty", lambda p: p.write_bytes(b""), "a.jpg", "0 bytes"),
    _image("cut in the middle", _cut, "a.jpg", "cannot be read", "truncated"),
    _image("text", lambda p: p.write_text("hello"), "a.jpg", "cannot be read"),
    _image("a folder", lambda p: p.mkdir(), "a.jpg"),
    _image("html page of a failed download", lambda p: p.write_text("<html>404</html>"), "a.jpg", "cannot be read"),
    _image("other size than stated", lambda p: _pixels(50, 40).save(p), "a.jpg", "50 x 40", "96 x 64"),
    _image("turned by EXIF, size of the file stated", _turned, "a.jpg", "64 x 96", "turned upright"),
    _image("16 bits a channel", _sixteen_bits, "a.png", "8 bits", file_name="a.png"),
    _image("animated", _film, "a.gif", "holds 2 images", file_name="a.gif"),
    _image(
        "20 000 x 20 000 px", _huge, "a.png", "million pixels", "tiles", file_name="a.png", width=20000, height=20000
    ),
    _image("CMYK", lambda p: _pixels().convert("CMYK").save(p), "accepted", code=0),
    _image(
        "with transparency (RGBA)", lambda p: _pixels().convert("RGBA").save(p), "accepted", code=0, file_name="a.png"
    ),
    _image("grey", lambda p: _pixels().convert("L").save(p), "accepted", code=0),
    _image("with a palette", lambda p: _pixels().convert("P").save(p), "accepted", code=0, file_name="a.png"),
    _image("turned by EXIF, turned size stated", _turned, "accepted", code=0, width=64, height=96),
    _image("1 pixel", lambda p: _pixels(1, 1).save(p), "accepted", code=0, width=1, height=1),
    _image("20 000 px wide", lambda p: _pixels(20_000, 700).save(p), "accepted", code=0, width=20_000, height=700),
]


def _lines(what: str, kind: str, text: str, *says: str) -> Case:
    """A text file of one of the official formats: visdrone, uavdt or crowdhuman."""
    makers = {"visdrone": _visdrone, "uavdt": _uavdt, "crowdhuman": _crowdhuman}
    return Case(what, kind, says, 1, lambda folder: makers[kind](folder, text), kind)


def _visdrone(folder: Path, text: str) -> None:
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    _pixels().save(folder / "images/a.jpg")
    (folder / "annotations/a.txt").write_bytes(text.encode("latin-1"))


def _uavdt(folder: Path, text: str) -> None:
    images, truth = folder / "UAV-benchmark-M/M0101", folder / "GT"
    for place in (images, truth):
        place.mkdir(parents=True)
    _pixels().save(images / "img000001.jpg")
    (truth / "M0101_gt_whole.txt").write_bytes(text.encode("latin-1"))
    (truth / "M0101_gt_ignore.txt").write_text("")


def _crowdhuman(folder: Path, text: str) -> None:
    (folder / "Images").mkdir(parents=True)
    _pixels().save(folder / "Images/a.jpg")
    (folder / "annotation_train.odgt").write_bytes(text.encode("latin-1"))


def _person(box: str) -> str:
    return f'{{"ID": "a", "gtboxes": [{{"tag": "person", "fbox": {box}, "extra": {{}}}}]}}\n'


TEXT_CASES = [
    _lines("too few fields", "visdrone", "1,2,3,4,1\n", "a.txt, line 1", "5 fields instead of 8"),
    _lines("letters", "visdrone", "1,2,3,4,1,4,0,0\n1,b,3,4,1,4,0,0\n", "a.txt, line 2", "not a number"),
    _lines("infinite", "visdrone", "1,inf,3,4,1,4,0,0\n", "a.txt, line 1", "not finite"),
    _lines("negative width", "visdrone", "1,2,-3,4,1,4,0,0\n", "a.txt, line 1", "negative width"),
    _lines("unknown class", "visdrone", "1,2,3,4,1,12,0,0\n", "a.txt, line 1", "category 12"),
    _lines("fraction of a class", "visdrone", "1,2,3,4,1,4.5,0,0\n", "a.txt, line 1", "category 4.5"),
    _lines("not UTF-8", "visdrone", "1,2,3,4,1,4,0,\xe9\xff\n", "a.txt"),
    _lines("no boxes at all", "visdrone", "", "no box at all"),
    _lines("frame 0", "uavdt", "0,1,2,3,4,5,0,0,1\n", "M0101_gt_whole.txt, line 1", "frame 0"),
    _lines("frame without an image", "uavdt", "7,1,2,3,4,5,0,0,1\n", "img000007.jpg", "M0101_gt_whole.txt"),
    _lines("unknown class", "uavdt", "1,1,2,3,4,5,0,0,9\n", "line 1", "category 9"),
    _lines("letters", "uavdt", "1,1,2,x,4,5,0,0,1\n", "line 1", "not a number"),
    _lines("endless frame", "uavdt", "1e300,1,2,3,4,5,0,0,1\n", "line 1", "frame 1e+300"),
    _lines("not UTF-8", "uavdt", "\xff\xfe\n", "M0101_gt_whole.txt"),
    _lines("empty file", "crowdhuman", "", "annotation_train.odgt", "no line"),
    _lines("cut in the middle", "crowdhuman", '{"ID": "a", "gtbo', "line 1", "not valid json"),
    _lines("no ID", "crowdhuman", '{"gtboxes": []}', "line 1", "'ID'"),
    _lines("image that is not there", "crowdhuman", '{"ID": "b", "gtboxes": []}', "b.jpg"),
    _lines("name outside the folder", "crowdhuman", '{"ID": "../../x", "gtboxes": []}', "line 1", "'../../x'"),
    _lines("box of three numbers", "crowdhuman", _person("[1, 2, 3]"), "line 1", "[1, 2, 3]"),
    _lines("box of text", "crowdhuman", _person('"1,2,3,4"'), "line 1", "'1,2,3,4'"),
    _lines("box not a number", "crowdhuman", _person("[NaN, 2, 3, 4]"), "line 1", "nan"),
    _lines("box beyond all numbers", "crowdhuman", _person("[1" + "0" * 400 + ", 2, 3, 4]"), "line 1", "fbox"),
    _lines(
        "extra is a list",
        "crowdhuman",
        '{"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1,2,3,4], "extra": []}]}',
        "line 1",
        "'extra'",
    ),
]
