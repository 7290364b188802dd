"""The Triton kernel of the cosine distance; ``cosine`` launches it.

A tile is PIXELS pixels of one picture; a program goes through all channels, CHANNELS at a time.
Everything is float32 inside.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
import triton
import triton.language as tl


@triton.jit
def cosine_kernel(
    first_ptr,
    second_ptr,
    out_ptr,
    pixels,
    tiles,
    first_batch,
    first_channel,
    first_pixel,
    second_batch,
    second_channel,
    second_pixel,
    tiny,
    damping,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    DAMPED: tl.constexpr,
):
    """out (B, pixels) = 1 - cos of two maps whose elements are ``batch``, ``channel`` and
    ``pixel`` elements apart; damped if DAMPED."""
    picture = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = (tl.program_id(0) % tiles) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    # 64 bits: a map of several pictures may be larger than 2^31 elements
    wide = pixel.to(tl.int64)[:, None]
    first_ptr += picture * first_batch
    second_ptr += picture * second_batch
    dot = tl.zeros((PIXELS,), tl.float32)
    first_sum = tl.zeros((PIXELS,), tl.float32)
    second_sum = tl.zeros((PIXELS,), tl.float32)
    for start in tl.static_range(0, C, CHANNELS):
        channel = (start + tl.arange(0, CHANNELS))[None, :].to(tl.int64)
        known = inside[:, None] & (channel < C)
        first_at = wide * first_pixel + channel * first_channel
        second_at = wide * second_pixel + channel * second_channel
        a = tl.load(first_ptr + first_at, mask=known, other=0.0).to(tl.float32)
        b = tl.load(second_ptr + second_at, mask=known, other=0.0).to(tl.float32)
        dot += tl.sum(a * b, axis=1)
        first_sum += tl.sum(a * a, axis=1)
        second_sum += tl.sum(b * b, axis=1)
    # rounded like torch's; the quick square root and division are good to the last bit but one
    first_norm = tl.maximum(tl.sqrt_rn(first_sum), tiny)
    second_norm = tl.maximum(tl.sqrt_rn(second_sum), tiny)
    distance = 1.0 - tl.div_rn(dot, first_norm * second_norm)
    if DAMPED:
        length = first_norm * first_norm
        distance *= tl.div_rn(length, length + damping)
    tl.store(out_ptr + picture * pixels + pixel, distance, mask=inside)
