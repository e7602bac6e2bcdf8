// Distinct rows. A hash table with one slot per group holds the lowest row of the group; equal keys
// are confirmed by comparing rows. A prefix sum over "opens a group" then numbers the groups in
// order of first appearance. The table, the states and the ticket are zero at the start.
#include "fastguide/unique_rows.cuh"

#include "device.cuh"
#include "look_back.cuh"

namespace fastguide {

struct UniqueRowsArgs {
  const char* rows;  // [R] rows of row_bytes bytes
  i64 row_stride_bytes, row_bytes, num_rows;
  const u64* keys;  // [R, 2]
  u64* table;       // [2^bits]: 0, entry_of(row), or NUMBERED | group
  u64* states;      // [tiles]
  u64* ticket;      // [1]
  i64* first;       // [R]
  i64* inverse;     // [R]; holds the slot of each row until its group is known
  i64* count;       // [1]
  i32 bits;
};

constexpr u32 UNIQUE_THREADS = 256;
constexpr u32 ROWS_PER_THREAD = 4;
constexpr i64 UNIQUE_TILE = UNIQUE_THREADS * ROWS_PER_THREAD;
constexpr u32 ROW_LANES = 8;  // lanes that compare two rows: 64 bytes a step

constexpr u64 NUMBERED = 1ull << 63;

// Lower rows are larger entries, so that an empty slot can be zero and atomicMax keeps the lowest.
FG_HD u64 entry_of(i64 row) { return (1ull << 62) - static_cast<u64>(row); }
FG_HD i64 row_of(u64 entry) { return static_cast<i64>((1ull << 62) - entry); }

template <class Word>
__device__ bool equal_rows(const UniqueRowsArgs& args, i64 a, i64 b,
                           const Lanes<ROW_LANES>& lanes) {
  const Word* left = reinterpret_cast<const Word*>(args.rows + a * args.row_stride_bytes);
  const Word* right = reinterpret_cast<const Word*>(args.rows + b * args.row_stride_bytes);
  bool equal = true;
  for (i64 w = lanes.rank; w < args.row_bytes / static_cast<i64>(sizeof(Word)); w += ROW_LANES)
    equal = equal && left[w] == right[w];
  return lanes.all(equal);
}

// Every row of a group walks the same slots from the same start, and a slot never empties or
// changes its group: the first free slot that any of them claims is the slot of the group.
template <class Word>
__device__ void insert_row(const UniqueRowsArgs& args, i64 row, const Lanes<ROW_LANES>& lanes) {
  const u64 wrap = (1ull << args.bits) - 1, mine = entry_of(row);
  const u64 low = args.keys[2 * row], high = args.keys[2 * row + 1];
  u64 slot = first_slot(low, high, args.bits);
  for (;; slot = (slot + 1) & wrap) {
    u64 entry = 0;
    if (lanes.rank == 0) {
      entry = load_relaxed(&args.table[slot]);
      if (entry == 0) entry = atomicCAS(&args.table[slot], 0ull, mine);
    }
    entry = lanes.from(entry, 0);
    if (entry == 0) break;
    const i64 other = row_of(entry);
    if (args.keys[2 * other] != low || args.keys[2 * other + 1] != high) continue;
    if (!equal_rows<Word>(args, row, other, lanes)) continue;
    if (lanes.rank == 0 && mine > entry) atomicMax(&args.table[slot], mine);
    break;
  }
  if (lanes.rank == 0) args.inverse[row] = static_cast<i64>(slot);
}

// Rows of a tile that open a group: their bits, and how many there are. Another tile may number a
// slot meanwhile, but only the opener of a group numbers it.
__device__ inline u32 opening_rows(const UniqueRowsArgs& args, i64 begin) {
  u32 opens = 0;
  for (u32 i = 0; i < ROWS_PER_THREAD; ++i) {
    const i64 row = begin + i;
    if (row < args.num_rows && load_relaxed(&args.table[args.inverse[row]]) == entry_of(row))
      opens |= 1u << i;
  }
  return opens;
}

// Numbers the groups that a thread's rows open, from `group` on.
__device__ inline void number_groups(const UniqueRowsArgs& args, i64 begin, u32 opens, u64 group) {
  for (u32 i = 0; i < ROWS_PER_THREAD; ++i) {
    if ((opens >> i & 1) == 0) continue;
    args.first[group] = begin + i;
    store_relaxed(&args.table[args.inverse[begin + i]], NUMBERED | group);
    ++group;
  }
}

__device__ inline void finish_row(const UniqueRowsArgs& args, i64 row, i64 count) {
  args.inverse[row] = static_cast<i64>(load_relaxed(&args.table[args.inverse[row]]) & ~NUMBERED);
  if (row >= count) args.first[row] = 0;
}

template <class Word>
__device__ void insert_rows(const UniqueRowsArgs& args) {
  const Lanes<ROW_LANES> lanes;
  constexpr i64 GROUPS = UNIQUE_THREADS / ROW_LANES;
  i64 row = static_cast<i64>(blockIdx.x) * GROUPS + threadIdx.x / ROW_LANES;
  for (; row < args.num_rows; row += gridDim.x * GROUPS) insert_row<Word>(args, row, lanes);
}

template <class Word>
__global__ void __launch_bounds__(UNIQUE_THREADS, 4) unique_insert(const UniqueRowsArgs args) {
  insert_rows<Word>(args);
}

__global__ void __launch_bounds__(UNIQUE_THREADS, 4) unique_number(const UniqueRowsArgs args) {
  __shared__ u64 before;
  const i64 tile = take_tile(args.ticket);
  const i64 begin = tile * UNIQUE_TILE + threadIdx.x * static_cast<i64>(ROWS_PER_THREAD);
  const u32 opens = opening_rows(args, begin);
  u64 sum;
  const u64 exclusive = block_exclusive_sum<UNIQUE_THREADS>(__popc(opens), &sum);
  if (threadIdx.x < WARP) {
    const u64 earlier = look_back(args.states, tile, sum);
    if (threadIdx.x == 0) before = earlier;
  }
  __syncthreads();
  number_groups(args, begin, opens, before + exclusive);
  if (threadIdx.x == 0 && (tile + 1) * UNIQUE_TILE >= args.num_rows)
    *args.count = static_cast<i64>(before + sum);
}

__global__ void __launch_bounds__(UNIQUE_THREADS, 4) unique_finish(const UniqueRowsArgs args) {
  const i64 row = static_cast<i64>(blockIdx.x) * UNIQUE_THREADS + threadIdx.x;
  if (row < args.num_rows) finish_row(args, row, *args.count);
}

// All of it in one launch, for few rows: the block that ends last numbers the groups alone.
template <class Word>
__global__ void __launch_bounds__(UNIQUE_THREADS, 4) unique_fused(const UniqueRowsArgs args) {
  __shared__ bool last;
  insert_rows<Word>(args);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(args.ticket, 1ull) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  u64 count = 0;
  for (i64 tile = 0; tile < args.num_rows; tile += UNIQUE_TILE) {
    const i64 begin = tile + threadIdx.x * static_cast<i64>(ROWS_PER_THREAD);
    const u32 opens = opening_rows(args, begin);
    u64 sum;
    const u64 exclusive = block_exclusive_sum<UNIQUE_THREADS>(__popc(opens), &sum);
    number_groups(args, begin, opens, count + exclusive);
    count += sum;
  }
  __syncthreads();
  for (i64 row = threadIdx.x; row < args.num_rows; row += UNIQUE_THREADS)
    finish_row(args, row, static_cast<i64>(count));
  if (threadIdx.x == 0) *args.count = static_cast<i64>(count);
}

}  // namespace fastguide
