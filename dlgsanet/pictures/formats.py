"""File formats by extension. Imports nothing, so that wrong arguments are told at once."""

# Extension -> the format's name for Pillow.
WRITTEN = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
PICTURES = (*WRITTEN, ".gif", ".ppm", ".pgm")
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
