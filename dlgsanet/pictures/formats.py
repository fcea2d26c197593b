"""File formats by extension. Imports nothing, so that wrong arguments are reported at once."""

# Extension -> the format's name for Pillow.
WRITTEN = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
PICTURES = (*WRITTEN, ".gif", ".ppm", ".pgm", ".pnm", ".pbm", ".avif", ".heic", ".heif")
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
# Neither read nor written. As the name of an output they are a format, not a folder.
OTHER_PICTURES = (
    ".jxl", ".jp2", ".j2k", ".jpx", ".jxr", ".psd", ".xcf", ".svg", ".pdf", ".eps", ".ai", ".ico", ".tga", ".dds",
    ".exr", ".hdr", ".pfm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".raw", ".jfif", ".jpe",
    ".hif", ".heics", ".avifs", ".qoi", ".fits", ".apng",
)  # fmt: skip
