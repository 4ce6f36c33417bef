"""Numbers of the formats that are known without torch."""

AMAX_FLOOR = 1e-4  # smallest amax of an activation's FP8 scale (DeepSeek's reference code)
AMAX_TINY = 448 * 2.0**-126  # the same where only a zero or subnormal scale is avoided
INT4_MIDDLE = 8  # the code of zero where there are no zero points
