"""Numbers that Python and the compiled CPU layers share. The C++ sources get them as ``DLGSANET_<name>``.

`native/build.py` runs this file by its path before anything is installed, so it imports nothing.
"""

COLUMN_STEP = 16  # matrices that collect sums have a multiple of this many columns: whole registers of the widest kind
STRIP_ROWS = 64  # most rows of an image in one partial sum of a weight's gradient
CACHE_FLOATS = 100 * 1024  # scratch memory of a thread; it fits in a second-level cache of 512 KB
LAYER_NORM_EPS = 1e-5  # added to the variance; PyTorch's default
NORMALIZE_EPS = 1e-12  # least divisor of a vector's normalisation, as in torch.nn.functional.normalize
CONVOLVED_ROWS = 4  # of a result that a 3x3 convolution computes together
