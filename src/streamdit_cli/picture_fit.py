"""From a decoded frame to the model's picture: upright, in RGB, and of the model's size.

Whatever the size, pixel format, depth, matrix, range, pixel shape and rotation of a frame is, a
uint8 RGB array of one size comes out. Interlaced frames are left as they are.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from streamdit_cli.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Fit", "PictureFit", "describe_colour"]

Fit = Literal["crop", "pad", "stretch"]

# Tag of a matrix in ISO/IEC 23091-2 -> its name in swscale.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
_MATRIX_NAMES = {
    Colorspace.ITU709: "BT.709",
    Colorspace.FCC: "FCC",
    Colorspace.ITU601: "BT.601",
    Colorspace.SMPTE240M: "SMPTE 240M",
    Colorspace.BT2020: "BT.2020",
}
_EXACT = (
    Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
# Pixels of an enlarged picture, before its sides are cut, may be this many times those it has.
_MOST_CUT = 16


class PictureFit:
    """Fits frames into one size.

    Args:
        width, height: of the pictures, in pixels.
        fit: `crop` fills the size and cuts what is left over on two sides; `pad` shows everything,
            with black on two sides; `stretch` changes the shape.
        is_y4m: untagged pixels are BT.601 at every size, as all y4m of this tool is.
    """

    def __init__(self, width: int, height: int, fit: Fit, *, is_y4m: bool = False) -> None:
        self._size = (width, height)
        self._fit = fit
        self._is_y4m = is_y4m
        self._over_black = VideoReformatter()
        self._scale = VideoReformatter()

    def apply(self, frame: VideoFrame, *, pixel_aspect: Fraction) -> NDArray[np.uint8]:
        """Return a frame as uint8 RGB `(height, width, 3)`.

        Choice: areas are averaged on the way down, which rings at no edge; the way up is bicubic.

        Args:
            frame: of any size and pixel format.
            pixel_aspect: width of a pixel over its height, > 0.

        Raises:
            InputError: the shape is too extreme to be cut to the size.
        """
        import numpy as np

        quarters = round(frame.rotation / 90) % 4  # counter-clockwise
        width, height = self._size[::-1] if quarters % 2 else self._size
        colours = _source_colours(frame, is_y4m=self._is_y4m)
        scaled = self._scaled_size(frame, pixel_aspect, width, height)
        if _has_alpha(frame.format):
            frame, colours = self._without_alpha(frame, colours), {}
        is_reduced = scaled[0] <= frame.width and scaled[1] <= frame.height
        picture = self._scale.reformat(
            frame,
            width=scaled[0],
            height=scaled[1],
            format="rgb24",
            interpolation=(Interpolation.AREA if is_reduced else Interpolation.BICUBIC) | _EXACT,
            dst_color_range=ColorRange.JPEG,
            **colours,
        )
        array = _centred(np.asarray(picture.to_ndarray(), np.uint8), width, height)
        return np.ascontiguousarray(np.rot90(array, quarters))

    def _scaled_size(
        self, frame: VideoFrame, pixel_aspect: Fraction, width: int, height: int
    ) -> tuple[int, int]:
        """Return the size to scale to, before what is too much is cut, or the rest is black."""
        if self._fit == "stretch":
            return width, height
        across, down = width / (frame.width * pixel_aspect), height / Fraction(frame.height)
        scale = max(across, down) if self._fit == "crop" else min(across, down)
        wide = max(1, round(frame.width * pixel_aspect * scale))
        high = max(1, round(frame.height * scale))
        if wide * high > _MOST_CUT * width * height:
            shape = f"{frame.width}x{frame.height}"
            hint = "use --fit pad or --fit stretch"
            raise InputError(f"a frame of {shape} is too long to be cut to {width}x{height}", hint)
        return wide, high

    def _without_alpha(self, frame: VideoFrame, colours: dict[str, Any]) -> VideoFrame:
        """Return the frame over black, still in its own size."""
        import numpy as np

        rgba = self._over_black.reformat(
            frame, format="rgba", interpolation=Interpolation.BICUBIC | _EXACT, **colours
        ).to_ndarray()
        rgb = (rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255
        return VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")


def describe_colour(frame: VideoFrame, *, is_y4m: bool = False) -> str:
    """Say how the pixels of a frame are read, e.g. `BT.709 limited, yuv420p`."""
    colours = _source_colours(frame, is_y4m=is_y4m)
    if not colours:
        return f"RGB, {frame.format.name}"
    matrix = _MATRIX_NAMES[colours["src_colorspace"]]
    extent = "full" if colours["src_color_range"] == ColorRange.JPEG else "limited"
    return f"{matrix} {extent}, {frame.format.name}"


def _source_colours(frame: VideoFrame, *, is_y4m: bool) -> dict[str, Any]:
    """Return matrix and range of a frame for swscale; nothing for RGB.

    Choice: untagged pixels are BT.709 from 1280 columns or 577 rows on and BT.601 below, as video
    players guess; untagged YUV is limited range and untagged grey is full range.
    """
    if frame.format.is_rgb or _is_palette(frame.format):
        return {}
    is_large = frame.width >= 1280 or frame.height > 576
    guess = Colorspace.ITU709 if is_large and not is_y4m else Colorspace.ITU601
    extent = ColorRange(frame.color_range) if frame.color_range in (1, 2) else None
    if extent is None:
        is_full = frame.format.name.startswith(("yuvj", "gray", "ya"))
        extent = ColorRange.JPEG if is_full else ColorRange.MPEG
    return {
        "src_colorspace": _MATRICES.get(frame.colorspace, guess),
        "src_color_range": extent,
    }


def _is_palette(pixels: VideoFormat) -> bool:
    return pixels.name == "pal8"


def _has_alpha(pixels: VideoFormat) -> bool:
    return _is_palette(pixels) or any(part.is_alpha for part in pixels.components)


def _centred(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Cut a picture `(rows, columns, 3)` to a size, or put black round it, evenly."""
    import numpy as np

    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    cut = picture[max(0, top) : max(0, top) + height, max(0, left) : max(0, left) + width]
    if cut.shape[:2] == (height, width):
        return cut
    whole = np.zeros((height, width, 3), np.uint8)
    top, left = (height - cut.shape[0]) // 2, (width - cut.shape[1]) // 2
    whole[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return whole
