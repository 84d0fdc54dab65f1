// y[M, N] = x[M, K] · w[N, K]^T like kernel.cu, for as many rows that the tokens' bytes count: one warp copies, the
// others multiply. Weights and tokens come through shared memory by the copy engine, several steps ahead; several
// warpgroups share one copy of the tokens, and blocks side by side along N share one read of them.
//
// Macros: NT, CK, KC, STAGES, MINB as in kernel.cu, and
//   WGS    warpgroups of a block along N, of 64 weight rows each
//   CN     blocks along N that share the tokens (each reads 1 / CN of them, for all), part of the cluster
//   PATCH  1: escapes are put into the fragments, where they are no more than 77 binades below their row's largest
//   PDL    1: launched while the kernel before it ends; weights are fetched before that is awaited

#define BN (64 * WGS)
#define CONSUMERS (128 * WGS)
#define COPIERS (NT > 16 ? 128 : 32)  // one warp copies; a whole warpgroup may give its registers away
#define THREADS (CONSUMERS + COPIERS)
#define TOKEN_BYTES (MT * KC * 2)
#define CODE_BYTES (BN * KC)
#define STAGE (TOKEN_BYTES + CODE_BYTES + CODE_BYTES / 2)
#define GROUPS (A == 1 ? 2 : 1)  // stages of a turn of the loop: two groups of fragments, since one is still being read

__device__ __forceinline__ void barrier_arrive(u32 barrier, u32 rank) {  // that of a block of the cluster
#if CN > 1
  asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}"
               :: "r"(barrier), "r"(rank) : "memory");
#else
  barrier_arrive(barrier);
#endif
}

extern "C" __global__ void
#if CK * CN > 1
__cluster_dims__(CN, CK, 1)
#endif
__launch_bounds__(THREADS, MINB)
nested_linear(const __grid_constant__ TensorMap token_map,  // x, in boxes of 64 inputs x MT / CN tokens, swizzled
              const __grid_constant__ TensorMap code_map,   // codes, in boxes of 64 inputs x BN rows x KC / 64
              const u16* __restrict__ x, const u8* __restrict__ low, const u16* __restrict__ offsets,
              const int* __restrict__ first, const uint2* __restrict__ escapes, const u16* __restrict__ bias,
              u16* __restrict__ y, int M, int N, int K) {
  extern __shared__ __align__(1024) uint4 shared[];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
  const int ks = K / CK, k0 = blockIdx.y * ks, chunks = ks / KC, row0 = blockIdx.x * BN;
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  constexpr int SUM_BYTES = MT * SUMS * 4, BARRIERS = STAGES * STAGE > SUM_BYTES ? STAGES * STAGE : (SUM_BYTES + 15) / 16 * 16;
  const u32 full = base + BARRIERS, empty = full + STAGES * 8;

  if (tid == CONSUMERS) {
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4 * WGS * CN);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
#if CK * CN > 1
  cluster_sync();
#else
  __syncthreads();
#endif

  if (warp >= 4 * WGS) {
#if NT > 16
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
    if (warp == 4 * WGS) {
    unsigned long long stream, keep;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(stream));
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(keep));
    auto weights = [&](int c, int stage) {
      const u32 to = base + stage * STAGE + TOKEN_BYTES;
      if (lane == 0) {
        barrier_expect(full + 8 * stage, STAGE);
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;"
                     :: "r"(to), "l"(&code_map), "r"(0), "r"(row0), "r"((k0 + c * KC) / 64), "r"(full + 8 * stage), "l"(stream) : "memory");
      }
      __syncwarp();
      if (lane < BN / 16)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                     :: "r"(to + CODE_BYTES + lane * (A * 512)), "l"(low + ((size_t)(row0 / 16 + lane) * (K / 64) + (k0 + c * KC) / 64) * 512),
                        "r"(A * 512), "r"(full + 8 * stage), "l"(stream) : "memory");
    };
    auto tokens = [&](int c, int stage) {
      if (lane < A) {
        constexpr int PART = MT / CN;
        const int part = blockIdx.x % CN * PART;
        const u32 to = base + stage * STAGE + (lane * MT + part) * 128;
#if CN > 1
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;"
                     :: "r"(to), "l"(&token_map), "r"(k0 + c * KC + lane * 64), "r"(part), "r"(full + 8 * stage),
                        "h"((u16)(((1 << CN) - 1) << (blockIdx.y * CN))), "l"(keep) : "memory");
#else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;"
                     :: "r"(to), "l"(&token_map), "r"(k0 + c * KC + lane * 64), "r"(part), "r"(full + 8 * stage), "l"(keep) : "memory");
#endif
      }
    };
    const int ahead = chunks < STAGES ? chunks : STAGES;
    for (int c = 0; c < ahead; c++) weights(c, c);
#if PDL
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    for (int c = 0; c < ahead; c++) tokens(c, c);
    int stage = 0;
    u32 parity = 0;
    for (int c = ahead; c < chunks; c++) {
      barrier_wait(empty + 8 * stage, parity);
      weights(c, stage);
      tokens(c, stage);
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    }
  } else {
#if NT > 16
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
    const int tile = row0 / 16 + warp;
    const int* f = first + (size_t)tile * (K / 64) + k0 / 64;
    const int begin = f[0], end = f[ks / 64];
    const int exponent[2] = {offsets[16 * tile + g], offsets[16 * tile + g + 8]};
#if !PATCH
    if (begin + 4 * lane < end) asm volatile("prefetch.global.L2 [%0];" :: "l"(escapes + begin + 4 * lane));
#endif
    float acc[NT][4];
#if PATCH
    // Escapes of this warp's tile in the order of their inputs, 32 at a time, one in each lane.
    bool far = false;
    int at = begin, next;
    uint2 held;
    auto fill = [&] {
      held = at + lane < end ? escapes[at + lane] : make_uint2(0x7FFFFFFF, 0);
      next = __shfl_sync(~0u, held.x, 0);
    };
    fill();
    auto patch = [&](u32* w) {
      const u32 entry = __shfl_sync(~0u, held.y, (at - begin) & 31), row = entry >> 16, bits = entry & 0xFFFF;
      if (lane == (int)((row & 7) * 4 + (next >> 1 & 3))) {
        const int offset = row >> 3 ? exponent[1] : exponent[0];
        if (is_near(bits, offset)) {
          const u32 value = bits - ((offset - 64) << 7), r = (next >> 4 & 3) * 4 + (row >> 3) + (next >> 3 & 1) * 2;
#pragma unroll
          for (u32 i = 0; i < 16; i++)
            if (i == r) w[i] = __byte_perm(w[i], value, next & 1 ? 0x5410 : 0x3254);
        } else {
          far = true;
        }
      }
      at++;
      if ((at - begin) & 31)
        next = __shfl_sync(~0u, held.x, (at - begin) & 31);
      else
        fill();
    };
#endif
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) acc[n][i] = 0.f;
    const unsigned long long descriptor = (unsigned long long)(base >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
    const u32 own = TOKEN_BYTES + (warp * 16 + g) * 64 + t * 16, own_low = TOKEN_BYTES + CODE_BYTES + warp * (A * 512) + lane * 16;
    int stage = 0, before = STAGES - 1;
    u32 parity = 0;
    for (int c = 0; c < chunks; c += GROUPS) {
#pragma unroll
      for (int d = 0; d < GROUPS; d++) {
        barrier_wait(full + 8 * stage, parity);
        const char* at = (const char*)shared + stage * STAGE;
#pragma unroll
        for (int a = 0; a < A; a++) {
          const uint4 upper = *(const uint4*)(at + own + a * (BN * 64)), lower = *(const uint4*)(at + own + a * (BN * 64) + 512);
          const uint4 nibbles = *(const uint4*)(at + own_low + a * 512);
          u32 w[4][4];
#pragma unroll
          for (int s = 0; s < 4; s++) fragment(word(upper, s), word(lower, s), word(nibbles, s), w[s]);
#if PATCH
          for (const int limit = k0 + c * KC + d * KC + a * 64 + 64; next < limit;) patch(&w[0][0]);
#endif
          asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
          for (int s = 0; s < 4; s++) wgmma(&acc[0][0], w[s], descriptor + stage * (STAGE / 16) + a * (MT * 8) + s * 2);
          asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
          asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
          // The stage before has been read to its end.
          if (a == 0 && c + d > 0 && lane < CN) barrier_arrive(empty + 8 * before, lane + blockIdx.y * CN);
        }
        before = stage;
        if (++stage == STAGES) stage = 0, parity ^= 1;
      }
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#if PDL
    asm volatile("griddepcontrol.wait;" ::: "memory");  // x is read below, and y written
#endif
    // The row's scale, then the escapes of this warp's tile.
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int e = exponent[i >> 1] - 64, half = e >> 1;
      const float up = pow2(half), rest = pow2(e - half);
#pragma unroll
      for (int n = 0; n < NT; n++) acc[n][i] = acc[n][i] * up * rest;
    }
#if PATCH
    if (__any_sync(~0u, far))
#endif
      add_escapes(acc, x, escapes, begin, end, exponent, g, t, M, K);
    // Partial sums, in the place of the stages: all of them have arrived, and here all have been read.
    asm volatile("bar.sync 1, %0;" :: "n"(CONSUMERS) : "memory");
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) ((float*)shared)[(8 * n + 2 * t + (i & 1)) * SUMS + warp * 16 + g + (i >> 1) * 8] = acc[n][i];
  }
  const float* sums = (const float*)shared;
#if CK > 1
  cluster_sync();
  const int rank = blockIdx.y;
#else
  __syncthreads();
  const int rank = 0;
#endif
  if (warp < 4 * WGS)
    for (int i = rank * CONSUMERS + tid; i < BN / 4 * M; i += CK * CONSUMERS) {
      const int m = i / (BN / 4), row = i % (BN / 4) * 4;
      float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int b = 0; b < CK; b++) {
        const float* p = sums + m * SUMS + row;
        float4 v;
#if CK > 1
        u32 remote;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"((u32)__cvta_generic_to_shared(p)), "r"(b * CN + blockIdx.x % CN));
        asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(remote) : "memory");
#else
        v = *(const float4*)p;
#endif
        sum.x += v.x; sum.y += v.y; sum.z += v.z; sum.w += v.w;
      }
      store_sum(sum, bias, y, m, row0 + row, N);
    }
#if CK * CN > 1
  cluster_sync();  // others may still read these sums, or arrive at these barriers
#endif
}
