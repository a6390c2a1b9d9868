"""An image that somebody uploaded: bytes of unknown origin, checked before anything is computed on them."""

from __future__ import annotations

import io

from d2_ext.errors import DatasetError
from d2_ext.images import FORMATS, refuse_unusual

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_MEGABYTES = 20
MAX_MEGAPIXELS = 50
_EXPECTED = f"Expected an image ({', '.join(FORMATS)}) of at most {MAX_MEGABYTES} MB and {MAX_MEGAPIXELS} megapixels."


def decode_upload(content: bytes | None) -> np.ndarray:
    """Decode an image.

    Args:
        content: of the uploaded file.

    Returns:
        (H, W, 3) uint8 BGR, turned by its EXIF orientation.

    Raises:
        DatasetError: without a file, and for one that is too large, of another type, or damaged.
    """
    if not content:
        raise DatasetError(f"There is no image yet. {_EXPECTED}")
    if len(content) > MAX_MEGABYTES * 1e6:
        raise DatasetError(f"The file has {len(content) / 1e6:.1f} MB. {_EXPECTED} Make it smaller.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_MEGAPIXELS * 1e6:
                raise DatasetError(
                    f"The image has {image.width} x {image.height} px. {_EXPECTED} Make it smaller, or cut it."
                )
            refuse_unusual(image, "The image")
            rgb = ImageOps.exif_transpose(image).convert("RGB")
    except DatasetError:
        raise
    except UnidentifiedImageError:
        raise DatasetError(f"The file is no image of a known type. {_EXPECTED}") from None
    except Image.DecompressionBombError as error:
        raise DatasetError(f"The image is too large: {error}. {_EXPECTED}") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for damaged files
        raise DatasetError(f"The image is damaged ({error}). {_EXPECTED} Save it anew.") from None
    return np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1])
