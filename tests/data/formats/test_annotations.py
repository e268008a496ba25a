"""Annotation files: every format, what is missing in each, the best of several people, errors that name the place."""

import json

import numpy as np
import pytest

from posegen.data.formats.annotations import detect_format, read_annotations
from posegen.data.formats.coco import COCO, COCO_RESULTS, read_coco, read_coco_results
from posegen.data.formats.openpose import OPENPOSE, read_openpose
from posegen.data.formats.posegan_csv import HEADER, POSE_GAN, read_pose_gan_csv
from posegen.data.geometry.joints import JOINTS
from tests.conftest import SHARED_DATA

OPEN = SHARED_DATA / "open"
needs_open_data = pytest.mark.skipif(not OPEN.exists(), reason="the shared open data are not here")
NECK, RIGHT_SHOULDER, LEFT_SHOULDER = (JOINTS.index(name) for name in ("neck", "right_shoulder", "left_shoulder"))


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def points(count, *, start=0.0, confidence=1.0, missing=()):
    """Point i at (start + i, start + 100 + i) as OpenPose and COCO write it; missing ones as 0, 0, 0."""
    rows = [[start + i, start + 100 + i, confidence] if i not in missing else [0, 0, 0] for i in range(count)]
    return [number for row in rows for number in row]


class TestPoseGan:
    Y, X = list(range(50, 68)), list(range(10, 28))

    def row(self, name, y=None, x=None, space=" "):
        return f"{name}:{space}{y or self.Y}:{space}{x or self.X}\n"

    def test_y_stands_before_x(self, tmp_path):
        found = read_pose_gan_csv(write(tmp_path, "a.csv", f"{HEADER}\n" + self.row("1.jpg")))
        assert found.format == POSE_GAN
        assert found.poses["1.jpg"].joints.dtype == np.float32
        assert found.poses["1.jpg"].joints.tolist() == [[x, y] for x, y in zip(self.X, self.Y, strict=True)]
        assert found.poses["1.jpg"].visible.all()

    def test_spaces_line_ends_marks_and_empty_lines_do_not_matter(self, tmp_path):
        plain = write(tmp_path, "a.csv", f"{HEADER}\n" + self.row("1.jpg") + self.row("2.jpg"))
        text = f"{HEADER}\n" + self.row("1.jpg", space="") + "\n" + self.row("2.jpg", space="") + "\n"
        (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        first, second = read_pose_gan_csv(plain).poses, read_pose_gan_csv(tmp_path / "b.csv").poses
        assert list(first) == list(second) == ["1.jpg", "2.jpg"]
        assert (first["2.jpg"].joints == second["2.jpg"].joints).all()

    def test_only_minus_one_twice_is_missing(self, tmp_path):
        """The 176x256 list is x = x256 - 40, so x may be negative, -1 or 176 and more, with a real y."""
        y = [-1, 0, 5, -1, -3, *range(13)]
        x = [-1, 0, -1, 7, -20, *range(170, 183)]
        pose = read_pose_gan_csv(write(tmp_path, "a.csv", f"{HEADER}\n" + self.row("1.jpg", y, x, ""))).poses["1.jpg"]
        assert pose.visible.tolist() == [False] + [True] * 17
        assert pose.joints[1:5].tolist() == [[0, 0], [-1, 5], [7, -1], [-20, -3]]

    def test_decimals_are_read_absent_values_are_unknown_and_infinite_ones_are_passed_on(self, tmp_path):
        y, x = "[0.5" + ", 1" * 17 + "]", "[5, 1e999, NaN, null" + ", 2" * 14 + "]"
        pose = read_pose_gan_csv(write(tmp_path, "a.csv", f"{HEADER}\nn: {y}: {x}\n")).poses["n"]
        assert np.flatnonzero(~pose.visible).tolist() == [2, 3]
        assert pose.joints[[0, 2, 3]].tolist() == [[5, 0.5], [-1, -1], [-1, -1]]
        assert np.isinf(pose.joints[1, 0])

    def test_a_name_that_occurs_twice_has_no_pose(self, tmp_path):
        rows = self.row("1.jpg") + self.row("2.jpg") + self.row("1.jpg", self.X, self.Y)
        found = read_pose_gan_csv(write(tmp_path, "a.csv", f"{HEADER}\n{rows}"))
        assert list(found.poses) == ["2.jpg"]
        assert list(found.duplicates) == ["1.jpg"]
        assert "line 2" in found.duplicates["1.jpg"]
        assert "line 4" in found.duplicates["1.jpg"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("1.jpg: [1, 2]", r"a\.csv, line 3: expected 'name: \[18 y\]: \[18 x\]', found '1\.jpg: \[1, 2\]'"),
            (f"1.jpg: {Y[:17]}: {X}", "line 3: expected a list of 18 numbers for y, found 17 values"),
            (f"1.jpg: {Y}: {X[:-1]}", "line 3: expected a list of 18 numbers for x, found 17 values"),
            (f"1.jpg: {Y}: [1, 2", "line 3: expected a list of 18 numbers for x, found '"),
            (f"1.jpg: {Y}: {['a'] * 18}".replace("'", '"'), "line 3: expected a list of 18 numbers for x"),
            (f"1.jpg: {Y}: {[True] * 18}".lower(), "line 3: expected a list of 18 numbers for x"),
            (f": {Y}: {X}", "line 3: expected 'name"),
        ],
    )
    def test_a_row_that_does_not_parse_names_file_and_line(self, tmp_path, line, message):
        path = write(tmp_path, "a.csv", f"{HEADER}\n{self.row('0.jpg')}{line}\n")
        with pytest.raises(ValueError, match=message):
            read_annotations(path)

    def test_headers_of_another_order_and_files_without_rows_are_errors(self, tmp_path):
        other = write(tmp_path, "a.csv", "name:keypoints_x:keypoints_y\n" + self.row("1.jpg"))
        with pytest.raises(ValueError, match=r"a\.csv, line 1: expected the header 'name:keypoints_y:keypoints_x'"):
            read_annotations(other)
        with pytest.raises(ValueError, match="expected rows"):
            read_annotations(write(tmp_path, "b.csv", HEADER))
        (tmp_path / "c.csv").write_bytes(HEADER.encode() + b"\n\xff")
        with pytest.raises(ValueError, match="expected text in UTF-8"):
            read_annotations(tmp_path / "c.csv")


class TestOpenPose:
    def people(self, *people, key="pose_keypoints_2d"):
        return {"version": 1.2, "people": [{key: person} for person in people]}

    @pytest.mark.parametrize("key", ["pose_keypoints", "pose_keypoints_2d"])
    def test_eighteen_points_in_both_versions(self, tmp_path, key):
        path = write(tmp_path, "a_keypoints.json", self.people(points(18, missing=(4,)), key=key))
        found = read_annotations(path)
        assert found.format == OPENPOSE
        assert list(found.poses) == ["a"]
        assert found.poses["a"].joints[3].tolist() == [3, 103]
        assert found.poses["a"].joints[4].tolist() == [-1, -1]
        assert np.flatnonzero(~found.poses["a"].visible).tolist() == [4]

    def body_25(self, order):
        """An upright person whose points stand where the layout `order` has them."""
        person = np.zeros((25, 3))
        places = {"body_25": (1, 8, 9, 12), "body_25b": (17, 7, 12, 11)}[order]
        person[list(places)] = [(50, 10, 1), (50, 60, 1), (45, 60, 1), (55, 60, 1)]
        if order == "body_25b":
            person[[1, 8, 9]] = [(52, 5, 1), (30, 40, 1), (75, 55, 1)]
        return person.ravel().tolist()

    def test_twenty_five_points_are_body_25_unless_told_or_seen_otherwise(self, tmp_path):
        right = write(tmp_path, "right/a.json", self.people(self.body_25("body_25")))
        pose = read_openpose(right).poses["a"]
        assert pose.joints[JOINTS.index("right_hip")].tolist() == [45, 60]
        other = write(tmp_path, "other/a.json", self.people(self.body_25("body_25b")))
        with pytest.raises(ValueError, match=r"do not look like OpenPose's BODY_25 .*layout 'body_25b'"):
            read_openpose(other)
        assert read_openpose(other, "body_25b").poses["a"].joints[JOINTS.index("right_hip")].tolist() == [45, 60]
        assert read_openpose(other, "body_25").poses["a"].joints[JOINTS.index("left_hip")].tolist() == [45, 60]

    def test_the_person_with_the_highest_summed_confidence_is_taken(self, tmp_path):
        unsure = points(18, start=300, confidence=0.4)
        sure = points(18, start=10, confidence=0.9, missing=range(6, 18))
        path = write(tmp_path, "a.json", self.people([], unsure, sure, points(18, missing=range(18))))
        assert read_openpose(path).poses["a"].joints[0].tolist() == [300, 400]  # 18 x 0.4 > 6 x 0.9

    @pytest.mark.parametrize("people", [[], [{"pose_keypoints_2d": []}], [{"pose_keypoints_2d": [0] * 75}]])
    def test_a_image_without_anybody_has_no_visible_joint(self, tmp_path, people):
        pose = read_openpose(write(tmp_path, "a.json", {"people": people})).poses["a"]
        assert not pose.visible.any()
        assert (pose.joints == -1).all()

    def test_a_folder_is_read_with_its_sub_folders_by_path(self, tmp_path):
        for name in ("b_keypoints.json", "anna/cam.01.json", "a_keypoints.json"):
            write(tmp_path, name, self.people(points(18)))
        assert list(read_annotations(tmp_path).poses) == ["a", "anna/cam.01", "b"]

    def test_two_files_for_one_image_are_a_duplicate(self, tmp_path):
        for start, name in enumerate(("a.json", "a_keypoints.json")):
            write(tmp_path, name, self.people(points(18, start=start)))
        assert read_openpose(tmp_path).poses == {}
        assert "a_keypoints.json" in read_openpose(tmp_path).duplicates["a"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"people": [\n{"pose_keypoints_2d": [1, 2', r"a\.json, line 2: not JSON"),
            ({"persons": []}, r"a\.json: expected OpenPose output, an object with the list 'people'"),
            ({"people": {}}, "expected OpenPose output"),
            ({"people": [[]]}, r"people\[0\] has neither 'pose_keypoints_2d' nor 'pose_keypoints'"),
            ({"people": [{"face": []}]}, r"people\[0\] has neither"),
            (
                {"people": [{"pose_keypoints_2d": points(15)}]},
                r"people\[0\]\.pose_keypoints_2d: expected 54 numbers \(18 points\) or 75 numbers .*found 45 values",
            ),
            ({"people": [{"pose_keypoints_2d": [*points(17), 1, 2, "x"]}]}, r"\[53\]: expected a number, found 'x'"),
            ({"people": [{"pose_keypoints_2d": "abc"}]}, "found 'abc'"),
        ],
    )
    def test_errors_name_the_place(self, tmp_path, content, message):
        write(tmp_path, "a.json", content)
        with pytest.raises(ValueError, match=message):
            read_openpose(tmp_path)

    def test_a_layout_that_does_not_fit_and_an_empty_folder_are_errors(self, tmp_path):
        with pytest.raises(ValueError, match=r"found no \.json"):
            read_annotations(tmp_path)
        write(tmp_path, "a.json", self.people(points(18)))
        with pytest.raises(ValueError, match=r"expected 75 numbers \(25 points\) .*found 54 values"):
            read_openpose(tmp_path, "body_25b")


def coco(*annotations, images=((7, "a.jpg"), (8, "b.jpg"))):
    return {
        "images": [{"id": key, "file_name": name} for key, name in images],
        "annotations": [{"image_id": 7, "category_id": 1, **annotation} for annotation in annotations],
    }


class TestCoco:
    def test_the_neck_needs_both_shoulders_and_a_zero_flag_is_missing(self, tmp_path):
        whole, half = {"keypoints": points(17)}, {"keypoints": points(17, missing=(5,)), "image_id": 8}
        path = write(tmp_path, "a.json", coco(whole, half))
        assert detect_format(path) == COCO
        found = read_annotations(path)
        assert list(found.poses) == ["a.jpg", "b.jpg"]
        assert found.poses["a.jpg"].joints[[NECK, RIGHT_SHOULDER, LEFT_SHOULDER], 0].tolist() == [5.5, 6, 5]
        assert found.poses["a.jpg"].visible.all()
        assert np.flatnonzero(~found.poses["b.jpg"].visible).tolist() == [NECK, LEFT_SHOULDER]

    def test_a_hidden_point_that_is_labelled_is_known(self, tmp_path):
        path = write(tmp_path, "a.json", coco({"keypoints": points(17, confidence=1)}))
        assert read_coco(path).poses["a.jpg"].visible.all()

    @pytest.mark.parametrize("size", [lambda side: {"area": side}, lambda side: {"bbox": [0, 0, side, 2]}])
    def test_the_largest_person_with_a_point_is_taken(self, tmp_path, size):
        people = [
            {"keypoints": points(17, start=1), **size(10)},
            {"keypoints": points(17, start=2), **size(30)},
            {"keypoints": [0] * 51, **size(50)},
            {"keypoints": points(17, start=3), "iscrowd": 1, **size(90)},
            {"keypoints": points(17, start=4), **size(20)},
            {"bbox": [0, 0, 900, 900]},
        ]
        pose = read_coco(write(tmp_path, "a.json", coco(*people))).poses["a.jpg"]
        assert pose.joints[0].tolist() == [2, 102]

    def test_images_without_people_and_people_without_images_stay_visible_in_the_list(self, tmp_path):
        people = [{"keypoints": points(17)}, {"keypoints": points(17), "image_id": 99}]
        poses = read_coco(write(tmp_path, "a.json", coco(*people))).poses
        assert list(poses) == ["a.jpg", "b.jpg", "000000000099"]
        assert not poses["b.jpg"].visible.any()

    def test_one_name_with_two_ids_is_a_duplicate(self, tmp_path):
        content = coco({"keypoints": points(17)}, images=((7, "a.jpg"), (8, "a.jpg")))
        found = read_coco(write(tmp_path, "a.json", content))
        assert found.poses == {}
        assert list(found.duplicates) == ["a.jpg"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"annotations": []}, r"a\.json: expected the list 'images' with 'id' and 'file_name'"),
            ({"images": []}, "expected COCO person keypoints, an object with the lists 'images' and 'annotations'"),
            (coco(), r"expected annotations with 'keypoints', found none"),
            (coco({"keypoints": points(3)}), r"annotations\[0\]\.keypoints: expected 51 numbers .*found 9 values"),
            (coco({"keypoints": None}), r"annotations\[0\]\.keypoints: expected 51 numbers .*found None"),
            (coco({"image_id": None}), r"annotations\[0\]: expected 'image_id' to be a whole number or a text, found"),
            (coco({"keypoints": points(17), "area": "big"}), r"annotations\[0\]: expected 'area' to be a whole number"),
            (coco({"keypoints": points(17), "bbox": [1]}), r"annotations\[0\]\.bbox: expected four numbers"),
            (coco(images=((1, 2),)), r"images\[0\]: expected 'file_name' to be a text, found '2'"),
            (coco(images=((1, "a"), (1, "b"))), r"an id of its own for each of 'images', found 1 more than once"),
        ],
    )
    def test_errors_name_the_place(self, tmp_path, content, message):
        path = write(tmp_path, "a.json", content)
        with pytest.raises(ValueError, match=message):
            read_coco(path)


class TestCocoResults:
    def detection(self, key, score, start=0.0):
        return {"image_id": key, "category_id": 1, "keypoints": points(17, start=start), "score": score}

    def test_the_best_score_is_taken_and_ids_become_names(self, tmp_path):
        detections = [self.detection(136, 0.2, 1), self.detection(136, 0.7, 2), self.detection("b.jpg", 0.1, 3)]
        path = write(tmp_path, "results.json", detections)
        assert detect_format(path) == COCO_RESULTS
        poses = read_annotations(path).poses
        assert list(poses) == ["000000000136", "b.jpg"]
        assert poses["000000000136"].joints[0].tolist() == [2, 102]

    def test_names_come_from_an_images_list_beside(self, tmp_path):
        path = write(tmp_path, "results.json", [self.detection(7, 0.5), self.detection(9, 0.5)])
        write(tmp_path, "image_info.json", {"images": [{"id": 7, "file_name": "x/a.jpg"}]})
        write(tmp_path, "another.json", {"images": [{"id": 1, "file_name": "no.jpg"}]})
        assert list(read_coco_results(path).poses) == ["x/a.jpg", "000000000009"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "a list with at least one detection"),
            ([{"score": 1}], r"a\.json\[0\]: expected 'image_id' to be a whole number or a text"),
            ([{"image_id": 1}], r"a\.json\[0\]: expected 'score' to be a whole number or a number, found 'None'"),
            ([{"image_id": 1, "score": 1, "keypoints": [1]}], r"a\.json\[0\]\.keypoints: expected 51 numbers"),
            ([3], r"a\.json\[0\]: expected 'image_id'.*found '3'"),
        ],
    )
    def test_errors_name_the_place(self, tmp_path, content, message):
        path = write(tmp_path, "a.json", content)
        with pytest.raises(ValueError, match=message):
            read_coco_results(path)


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "x y z"), ("a.json", {"images": [], "annotations": []}), ("a.json", "[1, 2]")]
)
def test_an_unknown_format_lists_the_formats(tmp_path, name, content):
    path = write(tmp_path, name, content)
    assert detect_format(path) is None
    with pytest.raises(ValueError, match=r"no format that is understood.*pose-gan CSV.*OpenPose.*COCO person.*results"):
        read_annotations(path)


def test_a_missing_and_a_broken_file_say_so(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_annotations(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a\.json, line 1: not JSON"):
        read_annotations(write(tmp_path, "a.json", '{"images": '))
    with pytest.raises(ValueError, match="too deeply nested"):
        read_annotations(write(tmp_path, "a.json", "[" * 100_000))


@needs_open_data
class TestRealFiles:
    def test_openpose_1_0_takes_the_surer_of_two_people(self):
        pose = read_annotations(OPEN / "openpose-json/hmr_random_keypoints_BODY18_v1.0.json").poses[
            "hmr_random_keypoints_BODY18_v1.0"
        ]
        np.testing.assert_allclose(pose.joints[NECK], [447.67, 204.633], rtol=1e-6)
        assert np.flatnonzero(~pose.visible).tolist() == [0, 14, 15]

    def test_openpose_1_2_body_25(self):
        (pose,) = read_annotations(OPEN / "openpose-json/spin_im1010_openpose_BODY25_v1.2.json").poses.values()
        np.testing.assert_allclose(pose.joints[JOINTS.index("right_hip")], [71.5884, 96.9234], rtol=1e-6)
        np.testing.assert_allclose(pose.joints[JOINTS.index("left_ear")], [73.9174, 42.636], rtol=1e-6)
        missing = [JOINTS[joint] for joint in np.flatnonzero(~pose.visible)]
        assert missing == ["right_elbow", "right_wrist", "right_ear"]

    def test_body_25b_must_be_told(self):
        folder = OPEN / "pose2sim/single/pose/cam01_json"
        with pytest.raises(ValueError, match="layout 'body_25b'"):
            read_annotations(folder)
        poses = read_annotations(folder, "body_25b").poses
        assert len(poses) == 25
        joints = np.stack([pose.joints for pose in poses.values() if pose.visible.all()])
        assert len(joints) > 5
        heights = [joints[:, JOINTS.index(name), 1].mean() for name in ("nose", "neck", "right_hip", "left_ankle")]
        assert heights == sorted(heights)

    def test_several_people_a_file(self):
        poses = read_annotations(OPEN / "pose2sim/multi/pose", "body_25b").poses
        assert len(poses) == 20
        assert all(pose.visible.any() for pose in poses.values())

    def test_coco_with_people_who_have_no_keypoints(self):
        poses = read_annotations(OPEN / "mmpose-coco/test_coco.json").poses
        assert {name: int(pose.visible.sum()) for name, pose in poses.items()} == {
            "000000000785.jpg": 18,
            "000000040083.jpg": 15,  # 14 points of the largest, and the neck
            "000000196141.jpg": 13,
            "000000197388.jpg": 17,
        }

    def test_coco_results(self):
        poses = read_annotations(OPEN / "cocoapi/person_keypoints_val2014_fakekeypoints100_results.json").poses
        assert len(poses) == 47
        assert poses["000000000136"].joints[0].tolist() == [36, 181]
        assert np.flatnonzero(poses["000000000136"].visible).tolist() == [0, 2, 14, 16]

    def test_coco_of_other_things_than_people(self):
        file = OPEN / "datumaro/coco_person_keypoints/annotations/person_keypoints_train.json"
        with pytest.raises(ValueError, match=r"annotations\[0\]\.keypoints: expected 51 numbers .*found 9 values"):
            read_annotations(file)

    def test_three_formats_of_the_same_images_agree(self):
        folder = OPEN / "tfjs-models/derived_256x256"
        csv = read_annotations(folder / "annotation-train.csv").poses
        openpose = read_annotations(folder / "openpose_body18").poses
        coco_poses = read_annotations(folder / "person_keypoints.json").poses
        assert len(csv) == 148
        assert len(openpose) == len(coco_poses) == 185
        for name, pose in csv.items():
            other = openpose[name.removesuffix(".jpg")]
            assert (other.visible == pose.visible).all()
            assert np.abs(other.joints - pose.joints).max() <= 0.51  # the CSV has whole pixels
            assert np.abs(other.joints - coco_poses[name].joints).max() < 0.02
