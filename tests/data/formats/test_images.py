import struct

import cv2
import numpy as np
import pytest
import simplejpeg

from posegen.data import reasons
from posegen.data.formats.images import decode_into, fit, open_image, scaled_joints

HEIGHT, WIDTH = 40, 24


def scene():
    coarse = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT))


def encode(pixels, suffix=".jpg"):
    return cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def turned_by_camera(jpeg, orientation):
    """The same JPEG with an EXIF block that holds only an orientation."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    block = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def fitted(image, height=HEIGHT, width=WIDTH):
    return fit(image, height=height, width=width, jpeg_quality=95)


def decoded(image):
    out = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    decode_into(memoryview(image), out)
    return out


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images_of_the_right_size_keep_their_bytes(suffix):
    image = encode(scene(), suffix)
    assert fitted(image) == (image, (1.0, 1.0), False)
    np.testing.assert_array_equal(decoded(image), open_image(image).pixels)
    assert np.abs(decoded(image).astype(int) - scene()).mean() < 3


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_every_truncation_is_found(suffix):
    image = encode(scene(), suffix)
    for end in [*range(0, len(image), 13), len(image) - 2, len(image) - 1]:
        with pytest.raises(ValueError, match=reasons.DAMAGED):
            open_image(image[:end])


def test_what_is_no_image_is_rejected():
    for content in (b"", b"name:keypoints_y", bytes(1000), b"\xff\xd8" + bytes(1000)):
        with pytest.raises(ValueError, match=reasons.DAMAGED):
            open_image(content)


def test_grey_jpegs_are_read_as_rgb_and_kept():
    image = cv2.imencode(".jpg", scene()[:, :, 0])[1].tobytes()
    assert fitted(image).encoded == image
    assert (decoded(image) == decoded(image)[:, :, :1]).all()
    assert np.abs(decoded(image)[:, :, 0].astype(int) - scene()[:, :, 0]).mean() < 3


def test_cmyk_jpegs_become_rgb():
    ink = np.dstack([scene(), np.full((HEIGHT, WIDTH), 255, np.uint8)])  # inverted, as Adobe stores it
    image = simplejpeg.encode_jpeg(np.ascontiguousarray(ink), colorspace="CMYK", colorsubsampling="444", quality=95)
    result = fitted(image)
    assert result.encoded_again
    assert simplejpeg.decode_jpeg_header(result.encoded)[2] == "YCbCr"
    assert np.abs(decoded(result.encoded).astype(int) - open_image(image).pixels).mean() < 3


@pytest.mark.parametrize(
    "pixels",
    [
        scene().astype(np.uint16) * 257,
        np.dstack([scene(), np.zeros((HEIGHT, WIDTH), np.uint8)]),
        scene()[:, :, 0],
    ],
)
def test_deep_transparent_and_grey_pngs_are_read_as_plain_rgb(pixels):
    image = cv2.imencode(".png", pixels)[1].tobytes()
    grey = pixels.ndim == 2
    expected = np.repeat(scene()[:, :, :1], 3, axis=2) if grey else scene()[:, :, ::-1]
    assert np.abs(decoded(fitted(image).encoded).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".tiff"])
def test_other_kinds_become_jpegs(suffix):
    result = fitted(encode(scene(), suffix))
    assert result.encoded_again
    assert simplejpeg.is_jpeg(result.encoded)
    assert np.abs(decoded(result.encoded).astype(int) - scene()).mean() < 4


def test_images_turned_by_the_camera_are_stored_upright():
    lying = np.ascontiguousarray(np.rot90(scene()))  # orientation 6 says: turn it clockwise
    image = turned_by_camera(encode(lying), 6)
    assert open_image(image).pixels.shape == (HEIGHT, WIDTH, 3)
    result = fitted(image)
    assert (result.scale, result.encoded_again) == ((1.0, 1.0), True)
    assert np.abs(decoded(result.encoded).astype(int) - scene()).mean() < 4


def test_an_exif_block_that_turns_nothing_is_kept():
    image = turned_by_camera(encode(scene()), 1)
    assert fitted(image).encoded == image


def test_shrinking_averages_areas():
    large = np.kron(scene(), np.ones((3, 2, 1), np.uint8))
    result = fitted(encode(large, ".png"))
    assert result.scale == (1 / 2, 1 / 3)
    assert np.abs(decoded(result.encoded).astype(int) - scene()).mean() < 3


def test_enlarging_is_linear():
    result = fitted(encode(scene(), ".png"), height=2 * HEIGHT, width=2 * WIDTH)
    expected = cv2.resize(scene(), (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_LINEAR)
    assert np.abs(open_image(result.encoded).pixels.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("factor", [4, 1 / 4])
def test_joints_stay_on_what_they_mark(factor):
    """A blob's centre of mass, found before and after resizing."""
    height, width = 64, 64
    rows, columns = np.mgrid[:height, :width]
    blob = np.exp(-((rows - 40.0) ** 2 + (columns - 22.0) ** 2) / 72) * 255
    image = encode(np.repeat(blob[:, :, None], 3, axis=2).round().astype(np.uint8), ".png")
    result = fitted(image, height=round(height * factor), width=round(width * factor))
    pixels = open_image(result.encoded).pixels[:, :, 0].astype(float)
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    centre = np.array([(columns * pixels).sum(), (rows * pixels).sum()]) / pixels.sum()
    joints = np.full((18, 2), (22.0, 40.0), np.float32)
    np.testing.assert_allclose(scaled_joints(joints, result.scale)[0], centre, atol=0.15 * max(factor, 1))


def test_joints_of_a_image_of_the_right_size_keep_their_bits():
    joints = np.random.default_rng(0).random((18, 2)).astype(np.float32)
    assert scaled_joints(joints, (1.0, 1.0)) is joints


def png_and_jpeg() -> tuple[bytes, bytes]:
    image = np.kron(np.random.default_rng(0).integers(0, 255, (8, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    return tuple(cv2.imencode(ending, image)[1].tobytes() for ending in (".png", ".jpg"))  # pyright: ignore[reportReturnType]


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize("profile", [b"ICC_PROFILE\0\x02\x01" + b"z" * 99, b"ICC_PROFILE\0\x01\x03" + b"z" * 99])
def test_a_malformed_colour_profile_does_not_matter(profile):
    _, jpeg = png_and_jpeg()
    broken = jpeg[:2] + segment(0xE2, profile) + jpeg[2:]
    np.testing.assert_array_equal(open_image(broken).pixels, open_image(jpeg).pixels)
    fitted = fit(broken, height=64, width=32, jpeg_quality=95)
    assert not fitted.encoded_again
    out = np.empty((64, 32, 3), np.uint8)
    decode_into(fitted.encoded, out)
    np.testing.assert_array_equal(out, open_image(jpeg).pixels)
    with pytest.raises(ValueError, match="truncated or damaged"):
        open_image(broken[:-60])


def test_bytes_after_the_end_of_a_png_do_not_matter_and_a_cut_one_is_damaged():
    png, _ = png_and_jpeg()
    np.testing.assert_array_equal(open_image(png + b"\0" * 100).pixels, open_image(png).pixels)
    for cut in (1, 13, len(png) // 2):
        with pytest.raises(ValueError, match="the PNG has no end"):
            open_image(png[:-cut])


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_other_formats_under_a_known_suffix_are_unsupported(brand):
    with pytest.raises(ValueError, match="unsupported image format"):
        open_image(b"\0\0\0\x18ftyp" + brand + b"\0" * 100)


def test_the_orientation_is_found_after_large_segments():
    _, jpeg = png_and_jpeg()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    icc = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 2]) + b"z" * 60_000) for n in (1, 2))
    turned = open_image(jpeg[:2] + icc + segment(0xE1, exif) + jpeg[2:]).pixels
    np.testing.assert_array_equal(turned, np.rot90(open_image(jpeg).pixels, -1))
