// The BF16 weight [N, K] itself, for products of so many rows that unpacking it once costs less than reading it nested.
//
// A warp takes 16 rows x 64 inputs: one load of codes for each of a thread's two rows, one of nibbles. Each thread then
// has every fourth pair of inputs; the quad exchanges them, so that a thread writes 16 neighbouring inputs of a row.

// Word j of the thread from word t of thread j, within a quad.
__device__ __forceinline__ void transpose(u32* v, int t) {
#pragma unroll
  for (int i = 0; i < 2; i++) {  // pairs 1 apart, then 2
    const int far = 1 << i;
    const bool upper = t & far;
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (!(j & far)) {
        const u32 given = upper ? v[j] : v[j + far], taken = __shfl_xor_sync(~0u, given, far);
        if (upper) v[j] = taken; else v[j + far] = taken;
      }
  }
}

// Two weights with their row's offset; a zero stays zero.
__device__ __forceinline__ u32 placed(u32 v, u32 offset) {
  const u32 low = v & 0x7FFF, high = v & 0x7FFF0000;
  return v + (low ? offset : 0) + (high ? offset << 16 : 0);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
nested_unpack(const uint4* __restrict__ codes, const uint4* __restrict__ low, const u16* __restrict__ offsets,
              const int* __restrict__ first, const uint2* __restrict__ escapes, u16* __restrict__ weight, int N, int K) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, groups = K / 64;
  const long long tile = (long long)blockIdx.x * WARPS + (threadIdx.x >> 5);
  if (tile >= (long long)(N / 16) * groups) return;
  const int row0 = (int)(tile / groups) * 16, group = (int)(tile % groups);
  const uint4 nibbles = low[tile * 32 + lane];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = row0 + g + 8 * h;
    const uint4 code = codes[((size_t)row * K + group * 64) / 16 + t];
    const u32 offset = (u32)offsets[row] << 7;
    u32 first_half[4], second_half[4];  // of 16 inputs, by step
#pragma unroll
    for (int s = 0; s < 4; s++) {
      const u32 n = word(nibbles, s) >> (8 * h);
      first_half[s] = placed(even(word(code, s), n), offset);
      second_half[s] = placed(odd(word(code, s), n), offset);
    }
    transpose(first_half, t);
    transpose(second_half, t);
    uint4* to = (uint4*)(weight + (size_t)row * K + group * 64 + 16 * t);
    to[0] = make_uint4(first_half[0], first_half[1], first_half[2], first_half[3]);
    to[1] = make_uint4(second_half[0], second_half[1], second_half[2], second_half[3]);
  }
  __syncwarp();
  for (int j = first[tile] + lane; j < first[tile + 1]; j += 32) {
    const uint2 e = escapes[j];
    weight[(size_t)(row0 + (e.y >> 16)) * K + e.x] = (u16)e.y;
  }
}
