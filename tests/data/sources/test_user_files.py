"""One's own files as other tools write them: nine images, three a person, whose joints are known by hand."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from posegen.data import reasons
from posegen.data.formats.annotations import BY_KEY
from posegen.data.geometry.joints import JOINTS
from posegen.data.listing import Listing
from posegen.data.sources.folder import Folder
from posegen.data.sources.pairs import ordered_pairs, usable_rows

NAMES = tuple(f"{person}_0{number}" for person in ("anna", "ben", "cleo") for number in (1, 2, 3))
J = np.array([
    (16, 9), (16, 15), (12, 15), (10, 22), (9, 29), (20, 15), (22, 22), (23, 29), (13, 31), (13, 43), (13, 56),
    (19, 31), (19, 43), (19, 56), (15, 8), (17, 8), (14, 9), (18, 9),
], float)  # fmt: skip
HUMAN36M = [
    "hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "spine", "thorax", "nose",
    "head", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist",
]  # fmt: skip
COCO_NAMES = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
]  # fmt: skip
BLAZEPOSE = {
    0: "nose", 2: "left_eye", 5: "right_eye", 7: "left_ear", 8: "right_ear", 11: "left_shoulder", 12: "right_shoulder",
    13: "left_elbow", 14: "right_elbow", 15: "left_wrist", 16: "right_wrist", 23: "left_hip", 24: "right_hip",
    25: "left_knee", 26: "right_knee", 27: "left_ankle", 28: "right_ankle",
}  # fmt: skip


def joints_of(name: str) -> np.ndarray:
    return J - (1, 0) if name == "anna_01" else J


def by_name(name: str, part: str) -> tuple[float, float]:
    joints = joints_of(name)
    return tuple(joints[JOINTS.index(part)]) if part in JOINTS else tuple(joints.mean(axis=0))


def make_images(folder: Path, names=NAMES, size: tuple[int, int] = (32, 64)) -> None:
    for number, name in enumerate(names):
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
        path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())


def flat(points, confidence: float = 1) -> list[float]:
    return [float(number) for x, y in points for number in (x, y, confidence)]


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def openpose(folder: Path, transform=lambda points: points) -> None:
    for name in NAMES:
        content = {"version": 1.3, "people": [{"pose_keypoints_2d": flat(transform(joints_of(name)), 0.9)}]}
        write(folder / f"{name}_keypoints.json", content)


def coco(points=COCO_NAMES, *, scale: float = 1, size=None, category=None, **more):
    images = [{"id": n, "file_name": f"{name}.jpg"} | (size or {}) for n, name in enumerate(NAMES, 1)]
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "area": 9, "keypoints": [
            value for part in points for value in (*(scale * np.array(by_name(name, part))).tolist(), 2)]}
        for n, name in enumerate(NAMES, 1)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "person", "keypoints": list(points)}] if category is None else category
    return {"categories": categories, "images": images, "annotations": annotations} | more


def check_good(listing: Listing, *, known=JOINTS, tolerance: float = 0.01) -> None:
    assert len(listing.entries) == 9, listing.rejects
    usable = usable_rows(listing.entries)
    assert len(usable) == 9
    assert len(ordered_pairs([listing.entries[row].group for row in usable])) == 18
    for entry in listing.entries:
        expected = joints_of(Path(entry.name).name.split(".")[0])
        for number, joint in enumerate(JOINTS):
            assert entry.visible[number] == (joint in known), joint
            if joint in known:
                np.testing.assert_allclose(entry.joints[number], expected[number], atol=tolerance)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_images(tmp_path / "images")
    return tmp_path


BODY = tuple(joint for joint in JOINTS if not joint.endswith(("eye", "ear")))


class TestUnits:
    """Kind A."""

    @pytest.mark.parametrize(
        ("unit", "transform", "scale"),
        [
            ("fractions", lambda points: points / (32, 64), 3),
            ("signed", lambda points: points / (32, 64) * 2 - 1, 4),
        ],
    )
    def test_fractions_are_refused_with_their_unit_and_the_remedy_works(self, root, unit, transform, scale):
        openpose(root / "openpose", transform)
        with pytest.raises(ValueError, match=rf"keypoint_scale {scale}.*`unit={unit}`"):
            Folder(root).listing()
        check_good(Folder(root, unit=unit).listing())

    def test_fractions_in_every_format_are_refused(self, root):
        shares = {name: joints_of(name) / (32, 64) for name in NAMES}
        rows = [f"{n}.jpg: {s[:, 1].tolist()}: {s[:, 0].tolist()}" for n, s in shares.items()]
        write(root / "joints.csv", "\n".join(["name:keypoints_y:keypoints_x", *rows]))
        with pytest.raises(ValueError, match="expected coordinates in pixels"):
            Folder(root).listing()
        (root / "joints.csv").unlink()
        write(root / "coco.json", coco(scale=1 / 64))
        with pytest.raises(ValueError, match="expected coordinates in pixels"):
            Folder(root).listing()

    def test_one_small_person_among_many_is_kept(self, root):
        openpose(root / "openpose", lambda points: points)
        write(root / "openpose/cleo_03_keypoints.json", {"people": [{"pose_keypoints_2d": flat(J / 64)}]})
        assert len(Folder(root).listing().entries) == 9

    def test_joints_of_another_size_are_scaled_and_noted(self, root):
        write(root / "coco.json", coco(scale=10, size={"width": 320, "height": 640}))
        listing = Folder(root).listing()
        check_good(listing)
        assert any("9 images are scaled" in note and "320x640" in note for note in listing.notes)

    def test_another_shape_is_an_error_with_both_sizes(self, root):
        write(root / "coco.json", coco(scale=10, size={"width": 640, "height": 640}))
        with pytest.raises(ValueError, match=r"9 of 9 images.*640x640.*32x64"):
            Folder(root).listing()

    def test_one_image_of_another_shape_is_a_reject(self, root):
        content = coco(size={"width": 32, "height": 64})
        content["images"] = [*content["images"], *({"id": 90 + n, "file_name": f"no{n}"} for n in range(3))]
        many = [f"dora_{n:02}" for n in range(12)]
        make_images(root / "images", many)
        for n, name in enumerate(many):
            content["images"].append({"id": 50 + n, "file_name": f"{name}.jpg", "width": 32, "height": 64})
            content["annotations"].append(content["annotations"][1] | {"id": 50 + n, "image_id": 50 + n})
        content["images"][0] |= {"width": 64, "height": 64}
        write(root / "coco.json", content)
        rejects = {r.name: r for r in Folder(root).listing().rejects}
        assert rejects["anna_01.jpg"].reason == reasons.OTHER_SHAPE
        assert rejects["anna_01.jpg"].detail == "annotated for 64x64, the image is 32x64"


class TestCategories:
    """Kind B."""

    @pytest.mark.parametrize("names", [HUMAN36M, sorted(HUMAN36M), [n.upper().replace("_", " ") for n in HUMAN36M]])
    def test_points_are_placed_by_name(self, root, names):
        content = coco([n.lower().replace(" ", "_") for n in names])
        content["categories"][0]["keypoints"] = names
        for annotation, name in zip(content["annotations"], NAMES, strict=True):  # the thorax is the neck
            at = 3 * [n.lower() for n in names].index("thorax")
            annotation["keypoints"][at : at + 2] = by_name(name, "neck")
        write(root / "coco.json", content)
        check_good(Folder(root).listing(), known=BODY)

    @pytest.mark.parametrize("spell", [
        lambda n: "".join(word.capitalize() for word in n.split("_")),
        lambda n: n.replace("left_", "l_").replace("right_", "r_"),
        lambda n: n.replace("left_", "l").replace("right_", "r"),
        lambda n: "-".join(reversed(n.split("_"))),
        lambda n: f"{n.split('_')[1]}.{n[0].upper()}" if "_" in n else n,
    ])  # fmt: skip
    def test_spellings_of_names(self, root, spell):
        content = coco()
        content["categories"][0]["keypoints"] = [spell(name) for name in COCO_NAMES]
        write(root / "coco.json", content)
        check_good(Folder(root).listing())

    @pytest.mark.parametrize("points", [["handle", "corner", "clasp", "base"], []])
    def test_categories_without_known_joints_are_passed_over_and_counted(self, root, points):
        content = coco()
        content["categories"].append({"id": 2, "name": "bag", "keypoints": points})
        bag = {"image_id": 1, "category_id": 2, "area": 900, "keypoints": [1, 1, 2] * 4}
        content["annotations"] += [bag | {"id": 77}, bag | {"id": 78, "image_id": 2}]
        write(root / "coco.json", content)
        listing = Folder(root).listing()
        check_good(listing)
        assert any("2 annotations of the category 'bag'" in note for note in listing.notes)

    @pytest.mark.parametrize("points", [[f"p{n}" for n in range(17)], COCO_NAMES])
    def test_of_two_categories_of_17_points_people_are_taken(self, root, points):
        content = coco()
        content["categories"].append({"id": 2, "name": "statue", "keypoints": points})
        content["annotations"].append(
            {"id": 77, "image_id": 1, "category_id": 2, "area": 900, "keypoints": [3, 3, 2] * 17}
        )
        write(root / "coco.json", content)
        check_good(Folder(root).listing())

    def test_unknown_names_are_listed(self, root):
        content = coco()
        content["categories"][0]["keypoints"][5] = "left_sholder"
        write(root / "coco.json", content)
        with pytest.raises(ValueError, match="unknown names: left_sholder"):
            Folder(root).listing()


def test_roboflow_whose_category_is_people_is_coco(root):
    """Kind C: `categories` stand before `images`, and one is called people."""
    write(root / "data.json", coco(category=[{"id": 1, "name": "people", "keypoints": COCO_NAMES}]))
    check_good(Folder(root).listing())


def test_the_format_can_be_given(root):
    openpose(root / "openpose")
    write(root / "coco.json", coco())
    assert "OpenPose" in Folder(root).listing().notes[0]
    assert "COCO person" in Folder(root, format="coco").listing().notes[0]
    with pytest.raises(ValueError, match=r"format 'yolo' is unknown\. Expected one of posegan_csv, openpose, coco"):
        Folder(root, format="yolo").listing()
    with pytest.raises(ValueError, match="no joints found"):
        Folder(root, format="mmpose").listing()


@pytest.mark.parametrize("name", ["._anna_01_keypoints.json", "anna_01_keypoints.json~", "__MACOSX/anna_01.json"])
def test_hidden_annotations_are_as_if_absent(root, name):
    """Kind D."""
    openpose(root / "openpose")
    path = root / "openpose" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes.fromhex("0005160700020000b0"))
    check_good(Folder(root).listing())


@pytest.mark.parametrize("name", ["._joints.csv", "._coco.json"])
def test_hidden_files_beside_the_images_are_as_if_absent(root, name):
    (root / name).write_bytes(bytes.fromhex("0005160700020000b0"))
    write(root / "coco.json", coco())
    check_good(Folder(root).listing())


def test_linked_folders_are_walked_and_loops_end(root, tmp_path_factory):
    """Kind E."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for person in ("anna", "ben", "cleo"):
        (elsewhere / person).mkdir()
        for path in (root / "images").glob(f"{person}_*"):
            shutil.move(path, elsewhere / person / path.name)
        (root / "images" / person).symlink_to(elsewhere / person)
    (elsewhere / "anna" / "loop").symlink_to(root / "images")
    openpose(root / "openpose")
    (root / "openpose" / "again").symlink_to(root)
    check_good(Folder(root, joints=Path("openpose")).listing())


class TestNames:
    """Kind F."""

    def test_case_and_unicode_form_do_not_matter_where_one_fits(self, root):
        (root / "images/anna_01.jpg").rename(root / "images" / unicodedata.normalize("NFD", "änna_01.jpg"))
        rows = [f"{n}.jpg: {joints_of(n)[:, 1].tolist()}: {joints_of(n)[:, 0].tolist()}" for n in NAMES]
        rows = [row.replace("anna_01", "Änna_01").replace("ben", "Ben") for row in rows]
        write(root / "joints.csv", "\n".join(["name:keypoints_y:keypoints_x", *rows]))
        assert len(Folder(root, identity="(.).").listing().entries) == 9

    def test_ids_may_be_numbers_or_text(self, root):
        content = coco()
        for annotation in content["annotations"]:
            annotation["image_id"] = str(annotation["image_id"])
        write(root / "coco.json", content)
        check_good(Folder(root).listing())

    def test_names_that_fit_several_are_counted_with_both_sides(self, tmp_path):
        make_images(tmp_path / "image")
        make_images(tmp_path / "cloth")
        openpose(tmp_path / "openpose_json")
        with pytest.raises(ValueError, match=r"9 fit several \('anna_01' .*cloth/anna_01\.jpg, image/anna_01\.jpg"):
            Folder(tmp_path).listing()
        check_good(Folder(tmp_path / "image", joints=tmp_path / "openpose_json").listing())

    def test_names_that_fit_none_are_counted_in_a_later_error(self, root):
        rows = [f"{n if n > 'c' else 'x' + n}.jpg: {J[:, 1].tolist()}: {J[:, 0].tolist()}" for n in NAMES]
        write(root / "joints.csv", "\n".join(["name:keypoints_y:keypoints_x", *rows]))
        with pytest.raises(ValueError, match=r"'cleo'.*6 names fit no image \('xanna_01\.jpg'.*'anna_01\.jpg'"):
            Folder(root).listing()

    def test_a_name_that_is_no_utf_8_is_a_reject(self, root):
        path = os.path.join(os.fsencode(root / "images"), b"M\xfcller_01.jpg")
        with open(path, "wb") as file:
            file.write(b"x")
        openpose(root / "openpose")
        shutil.copy(root / "openpose/anna_01_keypoints.json", os.fsencode(root / "openpose") + b"/M\xfcller_01.json")
        listing = Folder(root).listing()
        check_good(listing)
        assert ("M\\xfcller_01.jpg", reasons.NOT_UTF8) in [(r.name, r.reason) for r in listing.rejects]
        json.dumps([list(reject) for reject in listing.rejects]).encode()
        "".join(reject.name for reject in listing.rejects).encode()


def test_an_absent_value_is_an_unknown_joint(root):
    """Kind G."""
    content = coco()
    for annotation in content["annotations"]:
        annotation["keypoints"][3:6] = [None, None, 0]
        annotation["keypoints"][6:9] = [None, 4, 2]
    write(root / "coco.json", content)
    check_good(Folder(root).listing(), known=set(JOINTS) - {"left_eye", "right_eye"})


def test_a_header_with_spaces_is_shown(root):
    """Kind J."""
    write(root / "annotation.csv", "name : keypoints_y : keypoints_x\n")
    with pytest.raises(ValueError, match=r"annotation\.csv is there, its first line is 'name : keypoints_y"):
        Folder(root).listing()


def test_a_row_that_is_there_twice_is_kept_once_and_rows_that_differ_are_not(root):
    """Kind K."""
    rows = [f"{n}.jpg: {joints_of(n)[:, 1].tolist()}: {joints_of(n)[:, 0].tolist()}" for n in NAMES]
    write(root / "joints.csv", "\n".join(["name:keypoints_y:keypoints_x", *rows, rows[3]]))
    check_good(Folder(root).listing())
    write(root / "joints.csv", "\n".join(["name:keypoints_y:keypoints_x", *rows, rows[3].replace("15.0", "15.5")]))
    assert {r.name: r.reason for r in Folder(root).listing().rejects} == {"ben_01.jpg": reasons.DUPLICATE}


class TestOtherTools:
    """Kind L."""

    @pytest.mark.parametrize(("people", "joints"), [("people", "pose_keypoints_2d"), ("bodies", "joints")])
    def test_alphapose_open_and_cmu(self, root, people, joints):
        write(root / "alphapose-results.json", {
            f"{name}.jpg": {"version": "AlphaPose v0.3", people: [{joints: flat(joints_of(name), 0.8)}]}
            for name in NAMES
        })  # fmt: skip
        check_good(Folder(root).listing())

    def test_halpe_26(self, root):
        def points(name):
            order = [*COCO_NAMES, "head", "neck", "hip", *["left_toe"] * 6]
            return flat([by_name(name, part) for part in order])

        results = [
            {"image_id": f"{n}.jpg", "category_id": 1, "keypoints": points(n), "score": 2.5, "box": [1, 2, 3, 4]}
            for n in NAMES
        ]
        write(root / "alphapose-results.json", results)
        check_good(Folder(root).listing())

    def test_mmpose_predictions(self, root):
        for name in NAMES:
            person = {
                "keypoints": [list(by_name(name, part)) for part in COCO_NAMES], "keypoint_scores": [0.9] * 17,
                "bbox": [[1, 2, 30, 60]], "bbox_score": 0.9,
            }  # fmt: skip
            write(root / f"predictions/{name}.json", [person])
        check_good(Folder(root).listing())

    def test_dresscode_in_pixels_of_384x512(self, tmp_path):
        names = [f"{name}_0" for name in NAMES]
        make_images(tmp_path / "images", names, (768, 1024))
        for name in NAMES:
            points = [[x * 12, y * 8, 1, n] for n, (x, y) in enumerate(joints_of(name))]
            write(tmp_path / f"keypoints/{name}_2.json", {"keypoints": points})
        listing = Folder(tmp_path).listing()
        assert len(listing.entries) == 9
        np.testing.assert_allclose(listing.entries[3].joints, J * (24, 16))

    def test_dresscode_of_other_shapes_is_in_pixels(self, root):
        for name in NAMES:
            points = [[x, y, 1, n] for n, (x, y) in enumerate(joints_of(name).tolist())]
            write(root / f"keypoints/{name}.json", {"keypoints": points})
        check_good(Folder(root).listing())

    @pytest.mark.parametrize("scale", [(1, 1), (1 / 32, 1 / 64), (4, 4)])
    def test_controlnet_with_its_canvas(self, root, scale):
        canvas = (32, 64) if max(scale) <= 1 else (128, 256)
        for name in NAMES:
            people = [{"pose_keypoints_2d": flat(joints_of(name) * scale)}]
            write(root / f"poses/{name}.json", [
                {"people": people, "canvas_width": canvas[0], "canvas_height": canvas[1]}
            ])  # fmt: skip
        check_good(Folder(root).listing())

    def test_one_coco_file_for_training_and_one_for_testing(self, root):
        content = coco()
        for split, people in (("train", ("anna", "ben")), ("val", ("cleo",))):
            images = [i for i in content["images"] if i["file_name"].startswith(people)]
            write(root / f"annotations/person_keypoints_{split}2017.json", content | {
                "images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in
                                                  [i["id"] for i in images]]})  # fmt: skip
        listing = Folder(root).listing()
        check_good(listing)
        assert {e.identity: e.split for e in listing.entries} == {"anna": "train", "ben": "train", "cleo": "test"}

    def test_roboflow_s_folders(self, tmp_path):
        content = coco()
        for split, people in (("train", ("anna", "ben")), ("test", ("cleo",))):
            names = [name for name in NAMES if name.startswith(people)]
            make_images(tmp_path / split, names)
            write(tmp_path / split / "_annotations.coco.json", content | {
                "images": [i for i in content["images"] if i["file_name"].startswith(people)],
                "annotations": [a for a in content["annotations"] if NAMES[a["image_id"] - 1] in names]})  # fmt: skip
        listing = Folder(tmp_path).listing()
        check_good(listing)
        assert {e.identity: e.split for e in listing.entries} == {"anna": "train", "ben": "train", "cleo": "test"}

    @pytest.mark.parametrize("nest", [
        lambda person: {"pose_landmarks": [person]}, lambda person: person, lambda person: {"landmarks": person},
    ])  # fmt: skip
    def test_mediapipe_landmarks(self, root, nest):
        for name in NAMES:
            parts = [BLAZEPOSE.get(n, "other") for n in range(33)]
            points = [np.array(by_name(name, part)) / (32, 64) for part in parts]
            write(root / f"poses/{name}.json", nest([{"x": x, "y": y, "z": 0, "visibility": 0.9} for x, y in points]))
        check_good(Folder(root).listing())

    def test_33_points_in_coco(self, root):
        content = coco([BLAZEPOSE.get(n, "mouth") for n in range(33)])
        content["categories"][0].pop("keypoints")
        write(root / "coco.json", content)
        check_good(Folder(root).listing())

    @pytest.mark.parametrize("dims", [2, 3])
    def test_ultralytics_labels(self, tmp_path, dims):
        for split, people in (("train", ("anna", "ben")), ("val", ("cleo",))):
            names = [name for name in NAMES if name.startswith(people)]
            make_images(tmp_path / "images" / split, names)
            for name in names:
                points = [np.array(by_name(name, part)) / (32, 64) for part in COCO_NAMES]
                values = [v for x, y in points for v in ((x, y, 2) if dims == 3 else (x, y))]
                small = " ".join(["0 0.5 0.5 0.1 0.1", *["0.1"] * len(values)])
                line = " ".join(["0 0.5 0.5 0.4 0.8", *(f"{value:.6f}" for value in values)])
                write(tmp_path / "labels" / split / f"{name}.txt", f"{small}\n{line}\n")
        listing = Folder(tmp_path).listing()
        check_good(listing, tolerance=0.001)
        assert {e.split for e in listing.entries if e.identity == "cleo"} == {"test"}


def test_every_format_has_a_key_and_a_description():
    assert all(each.description and key == each.key for key, each in BY_KEY.items())


def test_sizes_come_from_headers_upright(tmp_path):
    from posegen.data.formats.images import image_size

    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.png")
    assert image_size(tmp_path / "a.jpg") == (40, 20)
    assert image_size(tmp_path / "b.png") == (20, 40)
    assert image_size(tmp_path / "none.png") is None
