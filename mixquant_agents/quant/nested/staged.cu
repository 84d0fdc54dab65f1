// y[M, N] = x[M, K] · w[N, K]^T for 33 to 64 rows. Weights are unpacked into shared memory as the BF16 numbers that they
// are, escapes among them, and multiplied from there: tokens, in registers, are wgmma's first operand. So 64 tokens are
// one instruction's rows and the block's weight rows its columns, and unpacking and wgmma run beside each other, in
// warps of their own: one warpgroup multiplies, others unpack, one warp copies weights and one copies tokens. Three
// rings of stages, of 64 inputs each, lie between them.
//
// Macros: CK and MINB as in kernel.cu, PDL as in wide.cu, and
//   BN          weight rows of a block
//   TPW         tiles of 16 rows that a warp unpacks of a step
//   GROUPS      groups of BN / 16 / TPW warps, which unpack the steps in turns
//   CS, TS, US  stages of packed weights, of tokens and of unpacked weights
//   SCRATCH     1: sums of the blocks along K meet in memory; 0: these blocks are a cluster

#define MEMBERS (BN / 16 / TPW)  // warps of a group
#define WORKERS (128 + 32 * MEMBERS * GROUPS)
#define THREADS (WORKERS + 64)
#define CLUSTER (SCRATCH ? 1 : CK)
#define TILE_BYTES (BN * 128)  // unpacked
#define TOKEN_BYTES 8192
#define CODE_BYTES (BN * 64)
#define LOW_BYTES (BN * 32)
#define PITCH (BN + 8)  // of sums, so that the writes of a warp touch every bank once
#define RINGS (US * TILE_BYTES + TS * TOKEN_BYTES + CS * (CODE_BYTES + LOW_BYTES))
#define BARRIERS (RINGS > 64 * PITCH * 4 ? RINGS : 64 * PITCH * 4)

// Tokens in registers, weights in shared memory.
#if BN == 64
#define SUMS_OF "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define SUMS_IN R4(0), R4(4), R4(8), R4(12), R4(16), R4(20), R4(24), R4(28)
#define INSTRUCTION "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
#define OPERANDS ", {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
#elif BN == 96
#define SUMS_OF "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47}"
#define SUMS_IN R4(0), R4(4), R4(8), R4(12), R4(16), R4(20), R4(24), R4(28), R4(32), R4(36), R4(40), R4(44)
#define INSTRUCTION "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
#define OPERANDS ", {%48,%49,%50,%51}, %52, 1, 1, 1, 0;"
#endif
__device__ __forceinline__ void multiply(float* d, const u32* a, unsigned long long weights) {
  asm volatile(INSTRUCTION SUMS_OF OPERANDS : SUMS_IN : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(weights));
}

struct Ring {  // a stage, and the parity to wait for
  u32 stage, parity;
  __device__ __forceinline__ void step(u32 by, u32 stages) {
    stage += by;
    if (stage >= stages) stage -= stages, parity ^= 1;
  }
};

struct Packed { uint4 upper, lower, low; };  // a thread's part of a tile of 16 rows x 64 inputs

__device__ __forceinline__ Packed packed(const char* codes, const char* low) {
  return {*(const uint4*)codes, *(const uint4*)(codes + 512), *(const uint4*)low};
}

struct Rows {  // powers of two of rows g and g + 8
  u32 factor[2];
  bool big;  // some row of the tile needs more than 2^127
  __device__ __forceinline__ void load(const u16* offsets) {
    u32 largest = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const u32 offset = offsets[8 * i];
      factor[i] = ((min(offset, 127u) + 127) << 7) * 0x10001u;
      largest = max(largest, offset);
    }
    big = __any_sync(~0u, largest > 127);
  }
};

// to: this lane's address for stmatrix, of the first 16 inputs.
__device__ __forceinline__ void unpack_tile(const Packed& from, const Rows& rows, u32 to, const u16* offsets) {
  u32 w[4][4];
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const u32 n = word(from.low, s);
    w[s][0] = even(word(from.upper, s), n);
    w[s][1] = even(word(from.lower, s), n >> 8);
    w[s][2] = odd(word(from.upper, s), n);
    w[s][3] = odd(word(from.lower, s), n >> 8);
#pragma unroll
    for (int i = 0; i < 4; i++) w[s][i] = scaled(w[s][i], rows.factor[i & 1]);
  }
  if (rows.big) {  // in no model's
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const u32 more = (max((u32)offsets[8 * h], 127u) << 7) * 0x10001u;  // what is left of it, and the exponent's bias
#pragma unroll
      for (int s = 0; s < 4; s++) w[s][h] = scaled(w[s][h], more), w[s][h + 2] = scaled(w[s][h + 2], more);
    }
  }
#pragma unroll
  for (int s = 0; s < 4; s++)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
                 :: "r"(to ^ (s << 5)), "r"(w[s][0]), "r"(w[s][1]), "r"(w[s][2]), "r"(w[s][3]) : "memory");
}

// Escapes of a tile of 16 rows in the order of their inputs, 32 at a time, one in each lane.
struct Escapes {
  int at, end;  // of this lane's, and of all
  uint2 now;
  int last;  // input of the 32nd
  __device__ __forceinline__ void load(const uint2* table) {
    now = at < end ? table[at] : make_uint2(0x7FFFFFFF, 0);
    at += 32;
    last = __shfl_sync(~0u, (int)now.x, 31);
  }
  // Those of the 64 inputs before limit go to their places in the tile, which all lanes have written.
  __device__ __forceinline__ void patch(const uint2* table, int limit, u32 tile) {
    for (;;) {
      const u32 d = now.x - (u32)(limit - 64);
      if (d < 64) {
        const u32 row = now.y >> 16;
        asm volatile("st.shared.u16 [%0], %1;" :: "r"(tile + row * 128 + (((d >> 3) ^ (row & 7)) << 4) + (d & 7) * 2), "h"((u16)now.y) : "memory");
      }
      if (last >= limit) break;
      load(table);
    }
  }
};

extern "C" __global__ void
#if CLUSTER > 1
__cluster_dims__(1, CK, 1)
#endif
__launch_bounds__(THREADS, MINB)
nested_linear(const __grid_constant__ TensorMap token_map,  // x, in boxes of 64 inputs x 64 tokens, swizzled
              const __grid_constant__ TensorMap code_map,   // codes, in boxes of 64 inputs x BN rows
              const u16* __restrict__ x, const u8* __restrict__ low, const u16* __restrict__ offsets,
              const int* __restrict__ first, const uint2* __restrict__ escapes, const u16* __restrict__ bias,
              u16* __restrict__ y, int M, int N, int K, float4* scratch, int* counters) {
  extern __shared__ __align__(1024) uint4 shared[];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
  const int ks = K / CK, k0 = blockIdx.y * ks, chunks = ks / 64, row0 = blockIdx.x * BN;
  const char* const memory = (const char*)shared;
  float* const sums = (float*)shared;  // in the end
  constexpr u32 TOKENS_AT = US * TILE_BYTES, CODES_AT = TOKENS_AT + TS * TOKEN_BYTES, LOWS_AT = CODES_AT + CS * CODE_BYTES;
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const u32 code_full = base + BARRIERS, code_empty = code_full + 8 * CS, token_full = code_empty + 8 * CS, token_empty = token_full + 8 * TS;
  const u32 ready = token_empty + 8 * TS, freed = ready + 8 * US;  // unpacked weights

  if (tid == 0) {
    for (int s = 0; s < CS; s++) barrier_init(code_full + 8 * s, 1), barrier_init(code_empty + 8 * s, MEMBERS);
    for (int s = 0; s < TS; s++) barrier_init(token_full + 8 * s, 1), barrier_init(token_empty + 8 * s, 4);
    for (int s = 0; s < US; s++) barrier_init(ready + 8 * s, MEMBERS), barrier_init(freed + 8 * s, 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
#if CLUSTER > 1
  cluster_sync();
#else
  __syncthreads();
#endif

  if (warp == WORKERS / 32) {
    unsigned long long stream;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(stream));
    Ring ring{0, 1};
    for (int c = 0; c < chunks; c++) {
      const u32 full = code_full + 8 * ring.stage;
      barrier_wait(code_empty + 8 * ring.stage, ring.parity);
      if (lane == 0) {
        barrier_expect(full, CODE_BYTES + LOW_BYTES);
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;"
                     :: "r"(base + CODES_AT + ring.stage * CODE_BYTES), "l"(&code_map), "r"(0), "r"(row0), "r"(k0 / 64 + c), "r"(full), "l"(stream) : "memory");
      }
      __syncwarp();
      if (lane < BN / 16)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                     :: "r"(base + LOWS_AT + ring.stage * LOW_BYTES + lane * 512), "l"(low + ((size_t)(row0 / 16 + lane) * (K / 64) + k0 / 64 + c) * 512),
                        "r"(512), "r"(full), "l"(stream) : "memory");
      __syncwarp();
      ring.step(1, CS);
    }
  } else if (warp == WORKERS / 32 + 1) {
    unsigned long long keep;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(keep));
#if PDL
    asm volatile("griddepcontrol.wait;" ::: "memory");
    // The next kernel may come now: where it has room beside this one, it begins with its weights.
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
    Ring ring{0, 1};
    for (int c = 0; c < chunks; c++) {
      const u32 full = token_full + 8 * ring.stage;
      barrier_wait(token_empty + 8 * ring.stage, ring.parity);
      if (lane == 0) {
        barrier_expect(full, TOKEN_BYTES);
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;"
                     :: "r"(base + TOKENS_AT + ring.stage * TOKEN_BYTES), "l"(&token_map), "r"(k0 + c * 64), "r"(0), "r"(full), "l"(keep) : "memory");
      }
      __syncwarp();
      ring.step(1, TS);
    }
  } else if (warp >= 4) {
    const int group = (warp - 4) / MEMBERS, tile = (warp - 4) % MEMBERS * TPW;
    const u32 own = (lane & 15) * 128 + (((lane >> 4) ^ (lane & 7)) << 4);  // this lane's row and unit for stmatrix
    Rows rows[TPW];
    Escapes list[TPW];
#pragma unroll
    for (int i = 0; i < TPW; i++) {
      const int all = row0 / 16 + tile + i;
      const int* f = first + (size_t)all * (K / 64) + k0 / 64;
      rows[i].load(offsets + 16 * all + g);
      list[i].at = f[0] + lane;
      list[i].end = f[chunks];
      list[i].load(escapes);
    }
    Ring code{0, 0}, out{0, 1};
    code.step(group, CS);
    out.step(group, US);
    for (int c = group; c < chunks; c += GROUPS) {
      barrier_wait(code_full + 8 * code.stage, code.parity);
      const char* codes = memory + CODES_AT + code.stage * CODE_BYTES + tile * 1024 + lane * 16;
      const char* lows = memory + LOWS_AT + code.stage * LOW_BYTES + tile * 512 + lane * 16;
      const u32 to = base + out.stage * TILE_BYTES + tile * 2048;
      Packed now = packed(codes, lows);
      barrier_wait(freed + 8 * out.stage, out.parity);
#pragma unroll
      for (int i = 0; i < TPW; i++) {
        Packed next = now;
        if (i + 1 < TPW) next = packed(codes + (i + 1) * 1024, lows + (i + 1) * 512);
        unpack_tile(now, rows[i], to + i * 2048 + own, offsets + row0 + 16 * (tile + i) + g);
        now = next;
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(code_empty + 8 * code.stage);
#pragma unroll
      for (int i = 0; i < TPW; i++) list[i].patch(escapes, k0 + c * 64 + 64, to + i * 2048);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads what was written here
      __syncwarp();
      if (lane == 0) barrier_arrive(ready + 8 * out.stage);
      code.step(GROUPS, CS);
      out.step(GROUPS, US);
    }
  } else {
    // Rows of 128 bytes, swizzled; 1024 bytes from 8 rows to the next 8.
    const unsigned long long kind = 1ull << 16 | 64ull << 32 | 1ull << 62;
    float acc[BN / 2];
#pragma unroll
    for (int i = 0; i < BN / 2; i++) acc[i] = 0.f;
    Ring token{0, 0}, in{0, 0};
    u32 in_before = 0;
    for (int c = 0; c < chunks; c++) {
      barrier_wait(token_full + 8 * token.stage, token.parity);
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");  // it has read the registers that are written below
      if (c > 0 && lane == 0) barrier_arrive(freed + 8 * in_before);
      // From shared memory they would cost gate and up together 3 us of 49 (H200).
      u32 a[4][4];
      const u32 from = base + TOKENS_AT + token.stage * TOKEN_BYTES + warp * 2048 + (lane & 15) * 128 + (((lane >> 4) ^ (lane & 7)) << 4);
#pragma unroll
      for (int s = 0; s < 4; s++)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(a[s][0]), "=r"(a[s][1]), "=r"(a[s][2]), "=r"(a[s][3]) : "r"(from ^ (s << 5)) : "memory");
      barrier_wait(ready + 8 * in.stage, in.parity);
      const unsigned long long b = kind | (base + in.stage * TILE_BYTES) >> 4;
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int s = 0; s < 4; s++) multiply(acc, a[s], b + 2 * s);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      if (lane == 0) barrier_arrive(token_empty + 8 * token.stage);
      in_before = in.stage;
      token.step(1, TS);
      in.step(1, US);
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    // Sums go to the place of the rings: all has arrived there, and here all has been read.
    asm volatile("bar.sync 1, 128;" ::: "memory");
    float* to = sums + (16 * warp + g) * PITCH + 2 * t;
#pragma unroll
    for (int j = 0; j < BN / 8; j++) {
      *(float2*)(to + 8 * j) = make_float2(acc[4 * j], acc[4 * j + 1]);
      *(float2*)(to + 8 * PITCH + 8 * j) = make_float2(acc[4 * j + 2], acc[4 * j + 3]);
    }
  }
  __syncwarp();
#if CLUSTER > 1
  cluster_sync();
#else
  __syncthreads();
#endif
  if (warp < WORKERS / 32) {
#if PDL
    asm volatile("griddepcontrol.wait;" ::: "memory");  // y and scratch are written below
#endif
#if SCRATCH
    // Every block leaves its sums in memory; the last of a tile adds them, always in the order of their inputs.
    float4* const parts = scratch + (size_t)blockIdx.x * CK * (16 * BN);
    for (int i = tid; i < BN / 4 * M; i += WORKERS)
      __stcg(parts + blockIdx.y * (16 * BN) + i, *(const float4*)(sums + i / (BN / 4) * PITCH + i % (BN / 4) * 4));
    __threadfence();
    asm volatile("bar.sync 1, %0;" :: "n"(WORKERS) : "memory");
    volatile int* const is_last = (volatile int*)(memory + BARRIERS + 16 * (CS + TS + US));
    if (tid == 0) {
      const bool all = atomicAdd(counters + blockIdx.x, 1) == CK - 1;
      if (all) counters[blockIdx.x] = 0;  // for the next kernel
      *is_last = all;
      __threadfence();
    }
    asm volatile("bar.sync 1, %0;" :: "n"(WORKERS) : "memory");
    if (*is_last) {
      __threadfence();
      for (int i = tid; i < BN / 4 * M; i += WORKERS) {
        float4 v[CK], sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int b = 0; b < CK; b++) v[b] = __ldcg(parts + b * (16 * BN) + i);
#pragma unroll
        for (int b = 0; b < CK; b++) sum.x += v[b].x, sum.y += v[b].y, sum.z += v[b].z, sum.w += v[b].w;
        store_sum(sum, bias, y, i / (BN / 4), row0 + i % (BN / 4) * 4, N);
      }
    }
#else
    const int rank = CLUSTER > 1 ? blockIdx.y : 0;
    for (int i = rank * WORKERS + tid; i < BN / 4 * M; i += CLUSTER * WORKERS) {
      const int m = i / (BN / 4), row = i % (BN / 4) * 4;
      const float* p = sums + m * PITCH + row;
      float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int b = 0; b < CLUSTER; b++) {
        float4 v;
#if CLUSTER > 1
        u32 remote;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"((u32)__cvta_generic_to_shared(p)), "r"(b));
        asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(remote) : "memory");
#else
        v = *(const float4*)p;
#endif
        sum.x += v.x; sum.y += v.y; sum.z += v.z; sum.w += v.w;
      }
      store_sum(sum, bias, y, m, row0 + row, N);
    }
#endif
  }
#if CLUSTER > 1
  cluster_sync();  // others may still read these sums
#endif
}
