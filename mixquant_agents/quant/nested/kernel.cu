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
//
// Weights are the first operand, unpacked into registers; tokens are the second. The order in which codes are stored
// (layout.py) makes the 16 codes of one load those that the thread needs: word s of thread t of a quad holds inputs
// 16s + 2t + {0, 8, 1, 9} of a chunk of 64, for step s.
//
// Unpacked weights lack their row's exponent offset: they lie below 2^-111. A factor of 2^64 keeps products normal; it
// goes to the operand with fewer registers. The row's scale takes both back, and then the escapes are added: one more
// step with 16 of them as k.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define BN (16 * RT * WN)
#define THREADS (32 * WN * WK)
#define MT (8 * NT)
#define SUMS (BN + 4)
#define A (KC / 64)
#define PIECES (3 * RT * A)  // of 16 bytes, that a thread needs of a chunk
#define SCALE_TOKENS (NT == 1 && !WG)

__device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

__device__ __forceinline__ u32 scaled(u32 v, u32 factor) {  // two bf16, each times a power of two
  u32 r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(v), "r"(factor), "r"(0x80008000u));
  return r;
}
#define UP64 0x5F805F80u
#define DOWN64 0x1F801F80u

__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four codes and their nibbles (bits 0-3 and 4-7 of each half of n) to the weights' bits: of codes 0, 2 and of 1, 3.
__device__ __forceinline__ u32 even(u32 c, u32 n) {
  u32 m = ((c << 4) & 0x07F007F0u) + (n & 0x000F000Fu) - 0x00080008u;
  return m | ((c << 8) & 0x80008000u);
}
__device__ __forceinline__ u32 odd(u32 c, u32 n) {
  u32 m = (c & 0x7F007F00u) + (n & 0x00F000F0u) - 0x00800080u;
  return (m >> 4) | (c & 0x80008000u);
}

struct Chunk {  // 16 * RT rows x KC inputs of a warp
  uint4 code[RT][A][2];  // [row tile][64 inputs][row g, row g + 8]
  uint4 low[RT][A];
};

// Where piece i of a chunk lies: 0, 1: codes of rows g and g + 8; 2: nibbles; and the next 64 inputs, the next tile.
__device__ __forceinline__ const void* piece(int i, const u8* const* rows, const uint4* const* lows, int chunk, size_t k8) {
  const int r = i / (3 * A), a = i / 3 % A, kind = i % 3;
  if (kind == 2) return lows[r] + (chunk * A + a) * 32;
  return rows[r] + (kind ? k8 : 0) + (chunk * A + a) * 64;
}

__device__ __forceinline__ uint4& slot(Chunk& c, int i) {
  const int r = i / (3 * A), a = i / 3 % A, kind = i % 3;
  return kind == 2 ? c.low[r][a] : c.code[r][a][kind];
}

__device__ __forceinline__ u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

__device__ __forceinline__ void unpack(u32 c, u32 n, u32& first, u32& second) {
  first = even(c, n);
  second = odd(c, n);
#if !SCALE_TOKENS
  first = scaled(first, UP64);
  second = scaled(second, UP64);
#endif
}

// Step s of 64 inputs: the fragment of rows g and g + 8.
__device__ __forceinline__ void fragment(const Chunk& c, int r, int a, int s, u32* w) {
  const u32 n = word(c.low[r][a], s);
  unpack(word(c.code[r][a][0], s), n, w[0], w[2]);
  unpack(word(c.code[r][a][1], s), n >> 8, w[1], w[3]);
}

#if WG
#define R4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#if NT == 1
#define SHAPE "m64n8k16"
#define REGS "{%0,%1,%2,%3}, {%4,%5,%6,%7}, %8"
#define ACC R4(0)
#elif NT == 2
#define SHAPE "m64n16k16"
#define REGS "{%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12"
#define ACC R4(0), R4(4)
#elif NT == 4
#define SHAPE "m64n32k16"
#define REGS "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20"
#define ACC R4(0), R4(4), R4(8), R4(12)
#elif NT == 8
#define SHAPE "m64n64k16"
#define REGS "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36"
#define ACC R4(0), R4(4), R4(8), R4(12), R4(16), R4(20), R4(24), R4(28)
#endif
__device__ __forceinline__ void wgmma(float* d, const u32* a, unsigned long long tokens) {
  asm volatile("wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 " REGS ", 1, 1, 1, 0;"
               : ACC : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tokens));
}

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

__device__ __forceinline__ float pow2(int e) { return __int_as_float((e + 127) << 23); }  // -126 <= e <= 127

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

extern "C" __global__ void
#if CK > 1
__cluster_dims__(1, CK, 1)
#endif
__launch_bounds__(THREADS, MINB)
nested_linear(const uint4* __restrict__ x,       // bf16 [M, K]
              const u8* __restrict__ codes,      // E4M3 [N, K]
              const uint4* __restrict__ low,     // [N / 16, K / 128, 2, 32] of 16 bytes
              const u16* __restrict__ offsets,   // [N]: exponent offset of a row
              const int* __restrict__ first,     // [N / 16 * K / 128 + 1]: where a tile's escapes begin
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
    const int* f = first + (size_t)(tile0 + r) * (K / 128) + first_k / 128;
    begin[r] = f[0];
    end[r] = f[chunks * KC / 128];
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
    for (int j = begin[r]; j < end[r]; j += 16) {
      uint2 e[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = j + 2 * t + (i & 1) + (i >> 1) * 8;
        e[i] = at < end[r] ? escapes[at] : make_uint2(0xFFFFFFFFu, 0);
      }
      u32 a[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {  // a0: row g, slots 0 1; a1: row g + 8; a2, a3: slots 2 3
        const u32 row = g + (i & 1) * 8;
        const uint2 p = e[(i >> 1) * 2], q = e[(i >> 1) * 2 + 1];
        a[i] = (p.y >> 16 == row ? p.y & 0xFFFF : 0) | (q.y >> 16 == row ? q.y << 16 : 0);
      }
#pragma unroll
      for (int n = 0; n < NT; n++) {
        u32 b[4];
        const u16* row = (const u16*)x + (size_t)min(8 * n + g, M - 1) * K;
#pragma unroll
        for (int i = 0; i < 4; i++) b[i] = e[i].x == 0xFFFFFFFFu ? 0 : row[e[i].x];
        mma(acc[r][n], a, b[0] | b[1] << 16, b[2] | b[3] << 16);
      }
    }
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
    if (bias) {
      const uint2 b = *(const uint2*)(bias + n);
      sum.x += __uint_as_float(b.x << 16); sum.y += __uint_as_float(b.x & 0xFFFF0000u);
      sum.z += __uint_as_float(b.y << 16); sum.w += __uint_as_float(b.y & 0xFFFF0000u);
    }
    uint2 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out.x) : "f"(sum.y), "f"(sum.x));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out.y) : "f"(sum.w), "f"(sum.z));
    *(uint2*)(y + (size_t)m * N + n) = out;
  }
#if CK > 1
  cluster_sync();
#endif
}
