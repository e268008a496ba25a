"""Parts of images and frames of videos: their names, squares with black borders, frames in any order."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from posegen.data.formats.images import FORWARD, Part, Square, cut_out, parse_part, read_part, square_around

FRAMES = FORWARD + 60


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Frame n is black but for the bars of n in binary digits, 10 pixels each."""
    path = tmp_path_factory.mktemp("videos") / "a b.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 50, (80, 32))
    for number in range(FRAMES):
        digits = [255 * (number >> digit & 1) for digit in range(8)]
        writer.write(np.repeat(np.tile(np.repeat(digits, 10), (32, 1))[..., None], 3, axis=2).astype(np.uint8))
    writer.release()
    return path


def shown(image: bytes) -> int:
    """The number that a frame shows."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return sum(int(pixels[16, 10 * digit + 5].mean() > 128) << digit for digit in range(8))


@pytest.mark.parametrize("path", ["/a b/c.mp4", "/a#frame=1&xywh=1,2,3,3/c.jpg"])
@pytest.mark.parametrize("frame", [None, 0, 125])
def test_a_part_is_what_its_text_says(path: str, frame: int | None):
    part = Part(Path(path), frame, Square(-3, 10, 700))
    assert parse_part(str(part)) == part
    assert str(Part(Path("a.mp4"), 25, Square(-3, 10, 700))) == "a.mp4#frame=25&xywh=-3,10,700,700"


def test_frames_forwards_backwards_again_and_far_ahead(video: Path):
    whole = Square(0, 0, 80)
    for number in (0, 25, 26, 5, 5, FRAMES - 1, 0, 50, FORWARD + 55, 1):
        assert shown(read_part(Part(video, number, whole))) == number


def test_a_frame_that_is_not_there_costs_only_itself(video: Path):
    with pytest.raises(ValueError, match="no such frame") as caught:
        read_part(Part(video, FRAMES, Square(0, 0, 80)))
    assert caught.value.args[1] == f"frame {FRAMES} of {video}, which says that it has {FRAMES}"
    assert shown(read_part(Part(video, 7, Square(0, 0, 80)))) == 7


def test_files_that_are_no_video_say_so(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for name in ("a.mp4", "nothing.mp4"):
        with pytest.raises(ValueError, match="unreadable file") as caught:
            read_part(Part(tmp_path / name, 0, Square(0, 0, 8)))
        assert name in caught.value.args[1]


def test_parts_of_image_files(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    part = cv2.imdecode(np.frombuffer(read_part(Part(tmp_path / "a.png", None, Square(2, 1, 9))), np.uint8), 1)
    np.testing.assert_array_equal(part, pixels[1:10, 2:11])
    with pytest.raises(ValueError, match="unreadable file"):
        read_part(Part(tmp_path / "b.png", None, Square(2, 1, 9)))


@pytest.mark.parametrize("square", [(-4, -3, 40), (5, 6, 8), (25, 15, 10), (-50, 0, 10), (0, 50, 10), (-9, -9, 10)])
def test_a_square_is_the_image_with_black_around(square: tuple[int, int, int]):
    pixels = np.random.default_rng(0).integers(1, 255, (20, 30, 3)).astype(np.uint8)
    padded = np.pad(pixels, ((60, 60), (60, 60), (0, 0)))
    left, top, side = square
    expected = padded[top + 60 : top + 60 + side, left + 60 : left + 60 + side]
    np.testing.assert_array_equal(cut_out(pixels, Square(*square)), expected)


def test_the_square_around_a_box_by_hand():
    # 11 pixels wide (10 to 20) and one high (5): 3 more on each side make 17, from 7 to 23 and from -3 to 13
    assert square_around(np.array([10.0, 5]), np.array([20.0, 5]), 3) == Square(7, -3, 17)


def test_the_square_holds_box_and_margin():
    random = np.random.default_rng(0)
    for _ in range(200):
        low = random.uniform(-50, 50, 2)
        high, margin = low + random.uniform(0, 80, 2), random.uniform(0, 30)
        left, top, side = square_around(low, high, margin)
        assert ((left, top) <= low - margin + 0.5).all()
        assert (high + margin - 0.5 <= (left + side - 1, top + side - 1)).all()
        assert side <= (high - low).max() + 2 * margin + 2
