"""The smallest amax that sets a scale of FP8 values; known without torch."""

AMAX_FLOOR = 1e-4  # of an activation's scale (DeepSeek's reference code)
AMAX_TINY = 448 * 2.0**-126  # where only a zero or subnormal scale is avoided
