// y[M, N] = x[M, K] · w[N, K]^T for 1 to 64 rows of x, where w is held in twelve bits: an E4M3 code (the FP8 twin
// itself, as an FP8 product reads it) and the four mantissa bits that BF16 has more (see layout.py).
//
// Compiled at run time with these macros:
//   NT     token tiles of 8 (M <= 8 * NT)          RT   weight-row tiles of 16 per warp
//   WN     warps side by side along N              WK   warps along K; partial sums meet in shared memory
//   CK     blocks along K, one cluster; their partial sums meet in distributed shared memory
//   KC     inputs of a chunk, the step of the pipeline: 64 or 128
//   DEPTH  chunks whose weights are in flight in registers; 0: they come through shared memory, as tokens do
//   STAGES chunks held in shared memory
//   MINB   blocks per multiprocessor aimed at
//   WG     1: four warps multiply together by wgmma (sm_90a), which reads tokens from shared memory itself;
//          0: each by mma.m16n8k16, with tokens read by ldmatrix
//   CODES_ONLY  1: multiplies by the FP8 twin, unquantized tokens: nibbles and escapes are not read
//   PDL    1: launched while the kernel before it ends; the first weights are fetched before that is awaited
//
// Weights are the first operand, unpacked into registers; tokens are the second. The order in which codes are stored
// (layout.py) makes the 16 codes of one load those that the thread needs: word s of thread t of a quad holds inputs
// 16s + 2t + {0, 8, 1, 9} of a chunk of 64, for step s.
//
// Unpacked weights lack their row's exponent offset: they lie below 2^-111. A factor of 2^64 keeps products normal; it
// goes to the operand with fewer registers. The row's scale takes both back, and then the escapes are added: one more
// step with 16 of them as k.

#define BN (16 * RT * WN)
#define THREADS (32 * WN * WK)
#define KINDS (CODES_ONLY ? 2 : 3)
#define PIECES (KINDS * RT * A)  // of 16 bytes, that a thread needs of a chunk

__device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

struct Chunk {  // 16 * RT rows x KC inputs of a warp
  uint4 code[RT][A][2];  // [row tile][64 inputs][row g, row g + 8]
  uint4 low[RT][A];
};

// Where piece i of a chunk lies: 0, 1: codes of rows g and g + 8; 2: nibbles; and the next 64 inputs, the next tile.
__device__ __forceinline__ const void* piece(int i, const u8* const* rows, const uint4* const* lows, int chunk, size_t k8) {
  const int r = i / (KINDS * A), a = i / KINDS % A, kind = i % KINDS;
  if (kind == 2) return lows[r] + (chunk * A + a) * 32;
  return rows[r] + (kind ? k8 : 0) + (chunk * A + a) * 64;
}

__device__ __forceinline__ uint4& slot(Chunk& c, int i) {
  const int r = i / (KINDS * A), a = i / KINDS % A, kind = i % KINDS;
  return kind == 2 ? c.low[r][a] : c.code[r][a][kind];
}

// Step s of 64 inputs.
__device__ __forceinline__ void fragment(const Chunk& c, int r, int a, int s, u32* w) {
  fragment(word(c.code[r][a][0], s), word(c.code[r][a][1], s), CODES_ONLY ? 0x88888888u : word(c.low[r][a], s), w);
}

#if WG
// tokens: descriptor of the chunk's first 64 inputs: 128-byte rows, swizzled, 1024 bytes from 8 rows to the next 8.
__device__ __forceinline__ void multiply(const Chunk& c, unsigned long long tokens, float acc[RT][NT][4]) {
#pragma unroll
  for (int a = 0; a < A; a++)
#pragma unroll
    for (int r = 0; r < RT; r++) {
      u32 w[4][4];
#pragma unroll
      for (int s = 0; s < 4; s++) fragment(c, r, a, s, w[s]);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int s = 0; s < 4; s++) wgmma(&acc[r][0][0], w[s], tokens + a * (MT * 8) + s * 2);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      // Fragments are registers: those of the next group but one are the same, so only one group may be under way,
      // and none where every group uses the same.
      asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(A * RT > 1 ? 1 : 0) : "memory");
    }
}
#else
// xs: where this lane reads, in bytes of shared memory, for the chunk's first token tile and units 0-3; other: 4-7.
__device__ __forceinline__ void multiply(const Chunk& c, u32 xs, u32 other, float acc[RT][NT][4]) {
#pragma unroll
  for (int a = 0; a < A; a++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      u32 w[2][RT][4];
#pragma unroll
      for (int s = 0; s < 2; s++)
#pragma unroll
        for (int r = 0; r < RT; r++) fragment(c, r, a, 2 * h + s, w[s][r]);
#pragma unroll
      for (int t = 0; t < NT; t++) {
        u32 b[4];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"((h ? other : xs) + (a * MT + 8 * t) * 128));
#if SCALE_TOKENS
#pragma unroll
        for (int i = 0; i < 4; i++) b[i] = scaled(b[i], UP64);
#endif
#pragma unroll
        for (int r = 0; r < RT; r++) {
          mma(acc[r][t], w[0][r], b[0], b[1]);
          mma(acc[r][t], w[1][r], b[2], b[3]);
        }
      }
    }
}
#endif

extern "C" __global__ void
#if CK > 1
__cluster_dims__(1, CK, 1)
#endif
__launch_bounds__(THREADS, MINB)
nested_linear(const uint4* __restrict__ x,       // bf16 [M, K]
              const u8* __restrict__ codes,      // E4M3 [N, K]
              const uint4* __restrict__ low,     // [N / 16, K / 64, 32] of 16 bytes
              const u16* __restrict__ offsets,   // [N]: exponent offset of a row
              const int* __restrict__ first,     // [N / 16 * K / 64 + 1]: where a tile's escapes begin
              const uint2* __restrict__ escapes, // column; row in the tile and bf16 bits
              const u16* __restrict__ bias,      // bf16 [N], or null
              u16* __restrict__ y,               // bf16 [M, N]
              int M, int N, int K) {
  extern __shared__ __align__(1024) uint4 shared[];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
  const int wn = warp % WN, wk = warp / WN;
  const int ks = K / CK, k0 = blockIdx.y * ks, chunks = ks / (WK * KC);
  const int tile0 = blockIdx.x * (BN / 16) + wn * RT, first_k = k0 + wk * chunks * KC;

  const u8* rows[RT];
  const uint4* lows[RT];
  int begin[RT], end[RT], exponent[RT][2];
#pragma unroll
  for (int r = 0; r < RT; r++) {
    const int tile = tile0 + r;
    rows[r] = codes + (size_t)(16 * tile + g) * K + first_k + 16 * t;
    lows[r] = low + ((size_t)tile * (K / 64) + first_k / 64) * 32 + lane;
  }
  const size_t k8 = (size_t)8 * K;
  constexpr int STAGE = WK * MT * KC * 2 + (DEPTH == 0 ? PIECES * THREADS * 16 : 0);  // bytes: tokens, weights
#if DEPTH
  Chunk ring[DEPTH];
  auto load = [&](Chunk& into, int c) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) slot(into, i) = load_stream(piece(i, rows, lows, c, k8));
  };
#pragma unroll
  for (int d = 0; d < DEPTH; d++)
    if (d < chunks) load(ring[d], d);
#endif

  // A stage's tokens: [warps along K][64 inputs][token][8 units of 16 bytes, unit u at u ^ (token % 8)].
  // A thread copies unit tid % UNITS of every STEP-th row; rows of the warps along K follow each other.
  constexpr int UNITS = KC / 8, STEP = THREADS / UNITS, COPIES = (MT * WK + STEP - 1) / STEP;
  const int unit = tid % UNITS, line0 = tid / UNITS;
  const uint4* from[COPIES];
  bool copies[COPIES];
#pragma unroll
  for (int j = 0; j < COPIES; j++) {
    const int line = line0 + j * STEP, m = line % MT, slice = line / MT;
    copies[j] = line < MT * WK && m < M;
    from[j] = x + (size_t)m * (K / 8) + (k0 + slice * chunks * KC) / 8 + unit;
  }
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const u32 to0 = base + (((unit >> 3) * MT * 8 + ((unit & 7) ^ (line0 & 7))) << 4);
  auto fetch = [&](int c, int stage) {
    if (c < chunks) {
#pragma unroll
      for (int j = 0; j < COPIES; j++) {
        const int line = line0 + j * STEP;  // its swizzle is line0's: STEP is a multiple of 8
        const u32 to = to0 + stage * STAGE + ((line / MT) * A * MT + line % MT) * 128;
        if (copies[j]) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from[j] + c * UNITS));
      }
#if !DEPTH
#pragma unroll
      for (int i = 0; i < PIECES; i++)  // which this thread alone reads
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
                     :: "r"(base + stage * STAGE + WK * MT * KC * 2 + (i * THREADS + tid) * 16), "l"(piece(i, rows, lows, c, k8)));
#endif
    }
    asm volatile("cp.async.commit_group;");
  };
#pragma unroll
  for (int r = 0; r < RT; r++) {
    const int* f = first + (size_t)(tile0 + r) * (K / 64) + first_k / 64;
    begin[r] = f[0];
    end[r] = f[chunks * A];
    exponent[r][0] = offsets[16 * (tile0 + r) + g];
    exponent[r][1] = offsets[16 * (tile0 + r) + g + 8];
  }

  float acc[RT][NT][4];
#pragma unroll
  for (int r = 0; r < RT; r++)
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) acc[r][n][i] = 0.f;

  const u32 tokens = base + wk * A * MT * 128;
#if WG
  const unsigned long long descriptor = (unsigned long long)(tokens >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
  constexpr int AHEAD = STAGES - 2;  // the last product of the chunk before may still read its tokens
#else
  const u32 xs = tokens + (lane & 7) * 128 + (((lane >> 3) ^ (lane & 7)) << 4), other = xs ^ 64;
  constexpr int AHEAD = STAGES - 1;
#endif
#if PDL
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#pragma unroll
  for (int p = 0; p < AHEAD; p++) fetch(p, p);
  int stage = 0, ahead = AHEAD;
  constexpr int UNROLL = DEPTH ? DEPTH : 1;
  for (int c = 0; c < chunks; c += UNROLL) {
#pragma unroll
    for (int d = 0; d < UNROLL; d++) {
      if (c + d < chunks) {
        asm volatile("cp.async.wait_group %0;" :: "n"(AHEAD - 1) : "memory");
#if WG
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
        __syncthreads();  // all have this chunk's tokens, and have left the stage that is filled next
        fetch(c + d + AHEAD, ahead);
        ahead = ahead + 1 == STAGES ? 0 : ahead + 1;
#if DEPTH
        const Chunk& weights = ring[d];
#else
        Chunk weights;
#pragma unroll
        for (int i = 0; i < PIECES; i++) slot(weights, i) = shared[(stage * STAGE + WK * MT * KC * 2) / 16 + i * THREADS + tid];
#endif
#if WG
        multiply(weights, descriptor + stage * (STAGE / 16), acc);
#else
        multiply(weights, xs + stage * STAGE, other + stage * STAGE, acc);
#endif
        stage = stage + 1 == STAGES ? 0 : stage + 1;
#if DEPTH
        if (c + d + DEPTH < chunks) load(ring[d], c + d + DEPTH);
#endif
      }
    }
  }
#if WG
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
  asm volatile("cp.async.wait_all;" ::: "memory");

  // The row's scale, then the escapes of this warp's tiles.
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int e = exponent[r][i >> 1] - 64, half = e >> 1;
      const float up = pow2(half), rest = pow2(e - half);
#pragma unroll
      for (int n = 0; n < NT; n++) acc[r][n][i] = acc[r][n][i] * up * rest;
    }
    if (!CODES_ONLY) add_escapes(acc[r], (const u16*)x, escapes, begin[r], end[r], exponent[r], g, t, M, K);
  }

  // Partial sums: [WK][MT][SUMS], over the warps along K and the blocks of the cluster.
  float* sums = (float*)shared;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < RT; r++)
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = wn * 16 * RT + 16 * r + g + (i >> 1) * 8, token = 8 * n + 2 * t + (i & 1);
        sums[(wk * MT + token) * SUMS + row] = acc[r][n][i];
      }
#if CK > 1
  cluster_sync();
  const int rank = blockIdx.y;
#else
  __syncthreads();
  const int rank = 0;
#endif
  const int share = BN / CK / 4;  // groups of four rows that this block finishes
  for (int i = tid; i < share * M; i += THREADS) {
    const int m = i / share, row = (rank * share + i % share) * 4, n = blockIdx.x * BN + row;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int b = 0; b < CK; b++)
#pragma unroll
      for (int w = 0; w < WK; w++) {
        const float* p = sums + (w * MT + m) * SUMS + row;
        float4 v;
#if CK > 1
        u32 remote;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"((u32)__cvta_generic_to_shared(p)), "r"(b));
        asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(remote) : "memory");
#else
        v = *(const float4*)p;
#endif
        sum.x += v.x; sum.y += v.y; sum.z += v.z; sum.w += v.w;
      }
    store_sum(sum, bias, y, m, n, N);
  }
#if CK > 1
  cluster_sync();
#endif
}
