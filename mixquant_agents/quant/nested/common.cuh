// What both kernels share: matrix instructions, and the way from codes and nibbles to fragments. It goes before each.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define MT (8 * NT)
#define SUMS (BN + 4)
#define A (KC / 64)
#define SCALE_TOKENS (NT == 1 && !WG)
#if PATCH  // escapes go into the fragments
#define HELD(bits, offset) is_near(bits, offset)
#else
#define HELD(bits, offset) false
#endif

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

__device__ __forceinline__ u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

__device__ __forceinline__ void unpack(u32 c, u32 n, u32& first, u32& second) {
  first = even(c, n);
  second = odd(c, n);
#if !SCALE_TOKENS
  first = scaled(first, UP64);
  second = scaled(second, UP64);
#endif
}

// The fragment of rows g and g + 8 for one step: four codes of each row, and their nibbles.
__device__ __forceinline__ void fragment(u32 upper, u32 lower, u32 n, u32* w) {
  unpack(upper, n, w[0], w[2]);
  unpack(lower, n >> 8, w[1], w[3]);
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
#elif NT == 16
#define SHAPE "m64n128k16"
#define REGS "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68"
#define ACC R4(0), R4(4), R4(8), R4(12), R4(16), R4(20), R4(24), R4(28), R4(32), R4(36), R4(40), R4(44), R4(48), R4(52), R4(56), R4(60)
#elif NT == 32
#define SHAPE "m64n256k16"
#define REGS "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, {%128,%129,%130,%131}, %132"
#define ACC R4(0), R4(4), R4(8), R4(12), R4(16), R4(20), R4(24), R4(28), R4(32), R4(36), R4(40), R4(44), R4(48), R4(52), R4(56), R4(60), R4(64), R4(68), R4(72), R4(76), R4(80), R4(84), R4(88), R4(92), R4(96), R4(100), R4(104), R4(108), R4(112), R4(116), R4(120), R4(124)
#endif
__device__ __forceinline__ void wgmma(float* d, const u32* a, unsigned long long tokens) {
  asm volatile("wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 " REGS ", 1, 1, 1, 0;"
               : ACC : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tokens));
}

#endif

__device__ __forceinline__ float pow2(int e) { return __int_as_float((e + 127) << 23); }  // -126 <= e <= 127

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Whether an escape is a fragment's value like any other once its row's offset is taken off and 2^64 is put on.
__device__ __forceinline__ bool is_near(u32 bits, int offset) {
  const int e = bits >> 7 & 255;
  return e && e != 255 && e + 64 > offset;
}

// One more step for every 16 escapes of a tile of 16 rows: with them as k. Those that fragments hold are left out.
__device__ __forceinline__ void add_escapes(float acc[NT][4], const u16* x, const uint2* escapes, int begin, int end, const int* offset, int g, int t, int M, int K) {
  for (int j = begin; j < end; j += 16) {
    uint2 e[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int at = j + 2 * t + (i & 1) + (i >> 1) * 8;
      e[i] = at < end ? escapes[at] : make_uint2(0xFFFFFFFFu, 0);
    }
    u32 a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {  // a0: row g, slots 0 1; a1: row g + 8; a2, a3: slots 2 3
      const u32 row = g + (i & 1) * 8;
      const uint2 p = e[(i >> 1) * 2], q = e[(i >> 1) * 2 + 1];
      a[i] = (p.y >> 16 == row && !HELD(p.y, offset[i & 1]) ? p.y & 0xFFFF : 0) | (q.y >> 16 == row && !HELD(q.y, offset[i & 1]) ? q.y << 16 : 0);
    }
#pragma unroll
    for (int n = 0; n < NT; n++) {
      u32 b[4];
      const u16* row = x + (size_t)min(8 * n + g, M - 1) * K;
#pragma unroll
      for (int i = 0; i < 4; i++) b[i] = e[i].x == 0xFFFFFFFFu ? 0 : row[e[i].x];
      mma(acc[n], a, b[0] | b[1] << 16, b[2] | b[3] << 16);
    }
  }
}

// Four results of a row of y.
__device__ __forceinline__ void store_sum(float4 sum, const u16* bias, u16* y, int m, int n, int N) {
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

// Of kernels whose weights come by the copy engine.
struct alignas(64) TensorMap { unsigned long long words[16]; };

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(count));
}
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
  asm volatile("{\n.reg .pred done;\nagain: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}"
               :: "r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}
