/* Kernels for CPUs: attention over pages where they lie, and the operators between two products.
 *
 * Every kernel computes a row in an order of its own, so that no bit of it depends on other rows or
 * on the number of threads. Tensors are fp32 or bf16, and sums and functions are fp32 in both.
 * Stored keys and values may have fewer bits than what attends to them.
 * `operators.py` and `worker/kv/paged_native.py` call them, and do the same by torch where they do
 * not fit. The file needs the C library alone. `setup.py` compiles it once for each set of
 * instructions.
 */

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define MAX_HEAD_DIM 256
/* Vectors of a row that are summed together, in registers. */
#if LANES == 16
#define VECTORS 4
#else
#define VECTORS 2
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint8_t UnsignedBytes __attribute__((vector_size(LANES)));
typedef float UnalignedFloats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t UnalignedHalves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t UnalignedBytes __attribute__((vector_size(LANES), aligned(1), may_alias));


/* --- Elements */

/* The types of elements. A flag `is_bf16` is the first or the second of them. */
enum { FP32, BF16, INT8 };

INLINE long size_of(int type) {
    switch (type) {
    case FP32: return 4;
    case BF16: return 2;
    default: return 1;
    }
}

INLINE const char *at(const void *tensor, long index, int type) {
    return (const char *)tensor + size_of(type) * index;
}

/* `__builtin_convertvector` would widen lane by lane, or half by half. */
INLINE Words widen_halves(const char *place) {
#ifdef __AVX512F__
    return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)place));
#else
    return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)place));
#endif
}

INLINE Ints widen_bytes(const char *place) {
#ifdef __AVX512F__
    return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)place));
#else
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)place));
#endif
}

INLINE Floats load(const void *tensor, long index, int type) {
    const char *place = at(tensor, index, type);
    switch (type) {
    case FP32: return *(const UnalignedFloats *)place;
    case BF16: return (Floats)(widen_halves(place) << 16);
    default: return __builtin_convertvector(widen_bytes(place), Floats);
    }
}

/* Store fp32 or bf16. `quantize` stores int8. */
INLINE void store(void *tensor, long index, Floats value, int type) {
    char *place = (char *)at(tensor, index, type);
    if (type == FP32) {
        *(UnalignedFloats *)place = value;
        return;
    }
    /* To the nearest, and to even between two. A NaN would be carried into another number. */
    Words bits = (Words)value;
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Words is_nan = (Words)(value != value);
    rounded = (is_nan & 0x7fc0) | (~is_nan & rounded);
    *(UnalignedHalves *)place = __builtin_convertvector(rounded, Halves);
}

INLINE Floats choose(Ints condition, Floats yes, Floats no) {
    return (Floats)((condition & (Ints)yes) | (~condition & (Ints)no));
}

/* Adding this to a number below 2^22, and subtracting it again, rounds to a whole number. */
#define WHOLE 12582912.0f

/* Return e^x. The error is below two units of the last place; x below -87.3 gives 0. */
INLINE Floats exponential(Floats x) {
    const Floats none = {0};
    Floats inside = choose(x > 88.7f, none + 88.7f, x);
    inside = choose(inside < -87.3f, none - 87.3f, inside);

    /* x = count * log(2) + rest */
    Floats count = (inside * 1.44269504f + WHOLE) - WHOLE;
    Floats rest = inside - count * 0.693359375f;
    rest = rest + count * 2.12194440e-4f;

    Floats power = none + 1.9875691500e-4f;
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;

    Ints exponent = (__builtin_convertvector(count, Ints) + 127) << 23;
    Floats result = power * (Floats)exponent;
    result = choose(x < -87.3f, none, result);
    return choose(x != x, x, result); /* a NaN stays one */
}

INLINE Floats sigmoid(Floats x) {
    return 1.0f / (1.0f + exponential(-x));
}

INLINE float sum(Floats value) {
    float lanes[LANES];
    memcpy(lanes, &value, sizeof lanes);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++)
            lanes[lane] += lanes[lane + width];
    return lanes[0];
}

INLINE int any(Ints condition) {
#ifdef __AVX512F__
    return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition) != 0;
#else
    return !_mm256_testz_si256((__m256i)condition, (__m256i)condition);
#endif
}

INLINE float largest_lane(Floats value) {
    float peak = value[0];
    for (int lane = 1; lane < LANES; lane++)
        peak = value[lane] > peak ? value[lane] : peak;
    return peak;
}

/* Return the elements of a stored head. In int8 its scale in fp32 lies in four bytes behind the
 * `head_dim` numbers that are multiplied by it.
 */
INLINE long head_width(long head_dim, int type) {
    return type == INT8 ? head_dim + (long)sizeof(float) : head_dim;
}

/* Return the number by which the elements of a stored head are multiplied. */
INLINE float scale_of(const void *head, long head_dim, int type) {
    float scale = 1.0f;
    if (type == INT8)
        memcpy(&scale, at(head, head_dim, type), sizeof scale);
    return scale;
}

/* Store a head in int8: whole numbers from -127 to 127, the nearest, and the even one of two.
 *
 * A head that is not finite has the scale NaN, so that all of it is read as NaN.
 */
INLINE void quantize(void *head, const void *x, long head_dim, int type) {
    Floats peaks = {0};
    Floats broken = {0}; /* zero, or NaN */
    for (long i = 0; i < head_dim; i += LANES) {
        Floats value = load(x, i, type);
        Floats magnitude = choose(value < 0.0f, -value, value);
        peaks = choose(magnitude > peaks, magnitude, peaks);
        broken += value - value;
    }
    float scale = largest_lane(peaks) / 127.0f;
    scale = scale < FLT_MIN ? FLT_MIN : scale; /* a head of zeros is not divided by zero */
    scale += sum(broken);

    char *place = head;
    for (long i = 0; i < head_dim; i += LANES) {
        Floats numbers = load(x, i, type) / scale;
        numbers = choose(numbers == numbers, numbers, (Floats){0});
        Ints rounded = __builtin_convertvector((numbers + WHOLE) - WHOLE, Ints);
        Shorts narrow = __builtin_convertvector(rounded, Shorts);
        *(UnalignedBytes *)(place + i) = __builtin_convertvector(narrow, Bytes);
    }
    memcpy(place + head_dim, &scale, sizeof scale);
}


/* --- Threads */

typedef void (*Task)(const void *arguments, long number);
typedef void (*Parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);

static Parallel parallel; /* GOMP_parallel of the OpenMP runtime that torch uses, or null */

void set_parallel(void *function) {
    parallel = (Parallel)function;
}

typedef struct {
    Task task;
    const void *arguments;
    long count;
    long next;
} Job;

static void work(void *data) {
    Job *job = data;
    for (;;) {
        long number = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (number >= job->count)
            return;
        job->task(job->arguments, number);
    }
}

/* Run a task for each number below `count`. No task waits for a thread without a processor. */
static void run(Task task, const void *arguments, long count, long threads) {
    Job job = {task, arguments, count, 0};
    if (threads > count)
        threads = count;
    if (threads > 1 && parallel)
        parallel(work, &job, (unsigned)threads, 0);
    else
        work(&job);
}


/* --- Operators between products */

#define ROWS_OF_TASK 8        /* so few that two threads end together */
#define ALONE (1L << 15)      /* elements for which no second thread is woken */

typedef struct {
    void *out;
    const void *first;
    const void *second;
    const void *third;
    long rows, width, inner;
    long first_stride, second_stride;
    float eps;
    int is_signed;
    int is_bf16;
} Operands;

#define FOR_ROWS(operands, number)                                                             \
    for (long row = (number) * ROWS_OF_TASK,                                                   \
              behind = row + ROWS_OF_TASK < (operands)->rows ? row + ROWS_OF_TASK              \
                                                             : (operands)->rows;               \
         row < behind; row++)

static void run_rows(Task task, const Operands *operands, long threads) {
    if (operands->rows * operands->width < ALONE)
        threads = 1;
    run(task, operands, (operands->rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK, threads);
}

INLINE void normalise(const Operands *o, long number, int is_bf16) {
    FOR_ROWS(o, number) {
        const void *x = at(o->first, row * o->first_stride, is_bf16);
        void *out = (void *)at(o->out, row * o->width, is_bf16);
        Floats squares = {0};
        for (long i = 0; i < o->width; i += LANES) {
            Floats value = load(x, i, is_bf16);
            squares += value * value;
        }
        float scale = 1.0f / __builtin_sqrtf(sum(squares) / (float)o->width + o->eps);
        for (long i = 0; i < o->width; i += LANES) {
            Floats value = load(x, i, is_bf16) * scale;
            if (o->second)
                value *= load(o->second, i, is_bf16);
            store(out, i, value, is_bf16);
        }
    }
}

/* Half-rotated rotary embedding, in place, of `inner` heads of `width` elements a row.
 *
 * The sines of the first half are negative already, or all are as they are.
 */
INLINE void rotate_rows(const Operands *o, long number, int is_bf16) {
    long half = o->width / 2;
    FOR_ROWS(o, number) {
        const void *cosines = at(o->second, row * o->width, is_bf16);
        const void *sines = at(o->third, row * o->width, is_bf16);
        for (long head = 0; head < o->inner; head++) {
            void *x = (void *)at(o->first, row * o->first_stride + head * o->width, is_bf16);
            for (long i = 0; i < half; i += LANES) {
                Floats low = load(x, i, is_bf16);
                Floats high = load(x, i + half, is_bf16);
                Floats first = low * load(cosines, i, is_bf16);
                Floats second = high * load(cosines, i + half, is_bf16);
                Floats sine = load(sines, i, is_bf16);
                store(x, i, first + high * (o->is_signed ? sine : -sine), is_bf16);
                store(x, i + half, second + low * load(sines, i + half, is_bf16), is_bf16);
            }
        }
    }
}

INLINE void gate_rows(const Operands *o, long number, int is_silu, int is_bf16) {
    FOR_ROWS(o, number) {
        const void *gate = at(o->first, row * o->first_stride, is_bf16);
        const void *x = at(o->second, row * o->second_stride, is_bf16);
        void *out = (void *)at(o->out, row * o->width, is_bf16);
        for (long i = 0; i < o->width; i += LANES) {
            Floats opening = load(gate, i, is_bf16);
            Floats value = sigmoid(opening);
            if (is_silu)
                value *= opening;
            store(out, i, value * load(x, i, is_bf16), is_bf16);
        }
    }
}

static void rms_norm_task(const void *arguments, long number) {
    const Operands *o = arguments;
    if (o->is_bf16)
        normalise(o, number, 1);
    else
        normalise(o, number, 0);
}

static void rotate_task(const void *arguments, long number) {
    const Operands *o = arguments;
    if (o->is_bf16)
        rotate_rows(o, number, 1);
    else
        rotate_rows(o, number, 0);
}

static void silu_task(const void *arguments, long number) {
    const Operands *o = arguments;
    if (o->is_bf16)
        gate_rows(o, number, 1, 1);
    else
        gate_rows(o, number, 1, 0);
}

static void sigmoid_task(const void *arguments, long number) {
    const Operands *o = arguments;
    if (o->is_bf16)
        gate_rows(o, number, 0, 1);
    else
        gate_rows(o, number, 0, 0);
}

/* The norm times a weight [width], if there is one. */
void rms_norm(void *out, const void *x, long stride, const void *weight, float eps, long rows,
              long width, int is_bf16, long threads) {
    Operands operands = {.out = out, .first = x, .first_stride = stride, .second = weight,
                         .eps = eps, .rows = rows, .width = width, .is_bf16 = is_bf16};
    run_rows(rms_norm_task, &operands, threads);
}

void rotate(void *x, long stride, const void *cosines, const void *sines, long rows, long heads,
            long head_dim, int is_signed, int is_bf16, long threads) {
    Operands operands = {.first = x, .first_stride = stride, .second = cosines, .third = sines,
                         .rows = rows, .inner = heads, .width = head_dim,
                         .is_signed = is_signed, .is_bf16 = is_bf16};
    run_rows(rotate_task, &operands, rows * heads * head_dim < ALONE ? 1 : threads);
}

void gate(void *out, const void *gates, long gate_stride, const void *x, long stride, long rows,
          long width, int is_silu, int is_bf16, long threads) {
    Operands operands = {.out = out, .first = gates, .first_stride = gate_stride, .second = x,
                         .second_stride = stride, .rows = rows, .width = width, .is_bf16 = is_bf16};
    run_rows(is_silu ? silu_task : sigmoid_task, &operands, threads);
}

/* Write x [rows, heads, head_dim] of a `type` to the rows of a pool that `places` names.
 *
 * The pool has its own type, whose numbers are no wider.
 */
void write_rows(void *pool, const int64_t *places, const void *x, long stride, long rows,
                long heads, long head_dim, int type, int pool_type) {
    long width = heads * head_width(head_dim, pool_type);
    for (long row = 0; row < rows; row++) {
        const char *from = at(x, row * stride, type);
        char *to = (char *)at(pool, places[row] * width, pool_type);
        if (type == pool_type)
            memcpy(to, from, (size_t)(width * size_of(type)));
        else if (pool_type == BF16)
            for (long i = 0; i < width; i += LANES)
                store(to, i, load(from, i, type), BF16);
        else
            for (long head = 0; head < heads; head++)
                quantize(to + head * head_width(head_dim, INT8),
                         at(from, head * head_dim, type), head_dim, type);
    }
}


/* --- Attention over pages */

/* Queries of a row that read its keys and values together. */
#define QUERIES_AT_ONCE 18

typedef struct {
    void *out;
    const void *query;
    const void *keys, *values;             /* pools of pages */
    const void *fresh_keys, *fresh_values; /* tokens that are not stored, one behind the other */
    const int32_t *block_table;            /* of each row, of `table_width` pages */
    const int32_t *num_stored;             /* of each row: the keys behind them are fresh */
    const int32_t *fresh_starts;           /* of each row: the first of its fresh tokens */
    const int32_t *blocks;                 /* of up to QUERIES_AT_ONCE queries: row, first, count */
    const int32_t *positions, *ends;       /* of each query: its own, and that behind its last key */
    long query_stride, table_width;
    long kv_heads, group, head_dim, page_size, window;
    float scale;
    int type;    /* of queries and of the result */
    int kv_type; /* of keys and values */
} Attention;

/* A block of queries, and the heads of keys that they attend with. */
typedef struct {
    int block, first_head, num_heads;
} Part;

typedef struct {
    const Attention *attention;
    const Part *parts;
} Parts;

/* The queries of a block: query i sees the tokens firsts[i] to ends[i], and none sees others than
 * `first` to `end`. */
typedef struct {
    long row, first_query, count;
    long first, end;
    long firsts[QUERIES_AT_ONCE], ends[QUERIES_AT_ONCE];
} Block;

static Block block_of(const Attention *o, long number) {
    const int32_t *given = o->blocks + 3 * number;
    Block block = {.row = given[0], .first_query = given[1], .count = given[2]};
    for (long i = 0; i < block.count; i++) {
        long behind = o->positions[block.first_query + i] + 1;
        long first = o->window && behind > o->window ? behind - o->window : 0;
        long end = o->ends[block.first_query + i];
        block.firsts[i] = first;
        block.ends[i] = end;
        block.first = !i || first < block.first ? first : block.first;
        block.end = !i || end > block.end ? end : block.end;
    }
    return block;
}

/* Return where the keys, or the values, of a row's token lie. */
INLINE const char *token_at(const Attention *o, const void *pool, const void *fresh, long row,
                            long token, long token_width, int kv_type) {
    long behind = token - o->num_stored[row];
    if (behind >= 0)
        return at(fresh, (o->fresh_starts[row] + behind) * token_width, kv_type);
    long page = o->block_table[row * o->table_width + token / o->page_size];
    return at(pool, (page * o->page_size + token % o->page_size) * token_width, kv_type);
}

/* Return the token behind those that lie one behind the other from `token` on. */
INLINE long run_end(const Attention *o, long row, long token, long end) {
    long behind = end;
    if (token < o->num_stored[row]) {
        behind = (token / o->page_size + 1) * o->page_size;
        behind = behind < o->num_stored[row] ? behind : o->num_stored[row];
    }
    return behind < end ? behind : end;
}

/* Ask for some bytes, for which memory needs longer than a page's sums. */
INLINE void prefetch(const char *line, long bytes) {
    for (const char *behind = line + bytes; line < behind; line += 64)
        __builtin_prefetch(line, 0, 2);
}

/* Add the lanes of LANES vectors: lane i of the result is the sum of vector i. */
INLINE Floats sums(const Floats *x) {
#if LANES == 16
    Floats a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) /* lanes 0-7 are of x[i], 8-15 of x[i + 8] */
        a[i] = __builtin_shufflevector(x[i], x[i + 8],
                                       0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(x[i], x[i + 8],
                                       8, 9, 10, 11, 12, 13, 14, 15,
                                       24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++) /* quarters are of x[i], x[i + 4], x[i + 8], x[i + 12] */
        b[i] = __builtin_shufflevector(a[i], a[i + 4],
                                       0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(a[i], a[i + 4],
                                       4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++) /* pairs are of x[i], x[i + 2], x[i + 4], ... */
        c[i] = __builtin_shufflevector(b[i], b[i + 2],
                                       0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(b[i], b[i + 2],
                                       2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return __builtin_shufflevector(c[0], c[1],
                                   0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(c[0], c[1],
                                   1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#else
    Floats a[4], b[2];
    for (int i = 0; i < 4; i++)
        a[i] = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
               __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    for (int i = 0; i < 2; i++)
        b[i] = __builtin_shufflevector(a[i], a[i + 2], 0, 1, 8, 9, 4, 5, 12, 13) +
               __builtin_shufflevector(a[i], a[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(b[0], b[1], 0, 8, 2, 10, 4, 12, 6, 14) +
           __builtin_shufflevector(b[0], b[1], 1, 9, 3, 11, 5, 13, 7, 15);
#endif
}

/* Write the scores of LANES tokens, of which those that a line's query does not see are -inf.
 *
 * There are `lines` queries [lines, head_dim] and as many rows of scores, `stride` apart. `chunk`
 * is the first token's position, and `tokens` are places of the keys.
 */
INLINE void score_chunk(const Block *block, long group, const float *queries, float *scores,
                        long lines, long stride, long chunk, const char *const *tokens,
                        long head_dim, int kv_type) {
    Ints lanes;
    for (int lane = 0; lane < LANES; lane++)
        lanes[lane] = (int)chunk + lane;
    float wide[LANES * MAX_HEAD_DIM];
    int is_widened = lines > 1 && kv_type != FP32;
    if (is_widened)
        for (int lane = 0; lane < LANES; lane++)
            for (long i = 0; i < head_dim; i += LANES)
                store(wide, lane * head_dim + i, load(tokens[lane], i, kv_type), FP32);

    for (long line = 0; line < lines; line++) {
        long first = block->firsts[line / group];
        long end = block->ends[line / group];
        if (end <= chunk || first >= chunk + LANES)
            continue;
        Floats products[LANES];
        for (int lane = 0; lane < LANES; lane++)
            products[lane] = (Floats){0};
        const float *query = queries + line * head_dim;
        for (long i = 0; i < head_dim; i += LANES) {
            Floats part = load(query, i, FP32);
            if (is_widened)
                for (int lane = 0; lane < LANES; lane++)
                    products[lane] += part * load(wide, lane * head_dim + i, FP32);
            else
                for (int lane = 0; lane < LANES; lane++)
                    products[lane] += part * load(tokens[lane], i, kv_type);
        }
        if (kv_type == INT8)
            for (int lane = 0; lane < LANES; lane++)
                products[lane] *= scale_of(tokens[lane], head_dim, kv_type);
        Ints is_seen = (lanes >= (int)first) & (lanes < (int)end);
        Floats none = (Floats){0} - __builtin_inff();
        store(scores, line * stride, choose(is_seen, sums(products), none), FP32);
    }
}

/* Turn the scores from `first` to `end`, both multiples of LANES, into weights. */
INLINE void softmax(float *scores, long first, long end) {
    Floats peaks = load(scores, first, FP32);
    for (long i = first + LANES; i < end; i += LANES)
        peaks = choose(load(scores, i, FP32) > peaks, load(scores, i, FP32), peaks);
    float peak = largest_lane(peaks);
    Floats total = {0};
    for (long i = first; i < end; i += LANES) {
        Floats weight = exponential(load(scores, i, FP32) - peak);
        store(scores, i, weight, FP32);
        total += weight;
    }
    float share = 1.0f / sum(total);
    for (long i = first; i < end; i += LANES)
        store(scores, i, load(scores, i, FP32) * share, FP32);
}

#define LINES_AT_ONCE 6
#define VECTORS_ALONE 8 /* of a line that is alone in the registers */

/* Add the weighted values of `count` tokens, which lie `step` bytes apart, to the results of lines.
 *
 * `weights` [lines, stride] begin at the first of these tokens, `results` are [lines, head_dim].
 * This is for the columns from `column` on that `vectors` vectors have.
 */
INLINE void add_columns(float *results, const float *weights, long stride, const char *values,
                        long step, long count, const int lines, const int vectors, long column,
                        long head_dim, int kv_type) {
    Floats added[LINES_AT_ONCE][VECTORS_ALONE];
    for (int line = 0; line < lines; line++)
        for (int i = 0; i < vectors; i++)
            added[line][i] = load(results, line * head_dim + column + i * LANES, FP32);
    for (long token = 0; token < count; token++) {
        const char *value = values + token * step;
        float scale = scale_of(value, head_dim, kv_type);
        Floats parts[VECTORS_ALONE];
        for (int i = 0; i < vectors; i++)
            parts[i] = load(value, column + i * LANES, kv_type);
#pragma GCC unroll 6
        for (int line = 0; line < lines; line++) {
            float weight = weights[line * stride + token] * scale;
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++)
                added[line][i] += parts[i] * weight;
        }
    }
    for (int line = 0; line < lines; line++)
        for (int i = 0; i < vectors; i++)
            store(results, line * head_dim + column + i * LANES, added[line][i], FP32);
}

INLINE void add_values(float *results, const float *weights, long stride, const char *values,
                       long step, long count, const int lines, long head_dim, int kv_type) {
    long column = 0;
    if (lines == 1)
        for (; column + VECTORS_ALONE * LANES <= head_dim; column += VECTORS_ALONE * LANES)
            add_columns(results, weights, stride, values, step, count, lines, VECTORS_ALONE,
                        column, head_dim, kv_type);
    for (; column + VECTORS * LANES <= head_dim; column += VECTORS * LANES)
        add_columns(results, weights, stride, values, step, count, lines, VECTORS, column,
                    head_dim, kv_type);
    for (; column < head_dim; column += LANES)
        add_columns(results, weights, stride, values, step, count, lines, 1, column, head_dim,
                    kv_type);
}

/* Add the values of the tokens `token` to `behind`, the first of which lies at `values`.
 *
 * `weights` [lines, stride] begin at the token `base`. Lines go through the tokens that all of them
 * see together, and each through its others alone: always in the order of the tokens.
 */
INLINE void add_run(const Block *block, long group, float *results, const float *weights,
                    long lines, long stride, long base, const char *values, long step, long token,
                    long behind, long head_dim, int kv_type) {
    for (long line = 0; line < lines; line += LINES_AT_ONCE) {
        long together = lines - line < LINES_AT_ONCE ? lines - line : LINES_AT_ONCE;
        long first = token, end = behind; /* those that all see */
        for (long i = line; i < line + together; i++) {
            first = block->firsts[i / group] > first ? block->firsts[i / group] : first;
            end = block->ends[i / group] < end ? block->ends[i / group] : end;
        }
        end = end > first ? end : first;
        for (int later = 0; later < 2; later++) {
            for (long i = line; i < line + together; i++) {
                long from = block->firsts[i / group] > token ? block->firsts[i / group] : token;
                long to = block->ends[i / group] < behind ? block->ends[i / group] : behind;
                if (later)
                    from = from > end ? from : end;
                else
                    to = to < first ? to : first;
                if (from < to)
                    add_values(results + i * head_dim, weights + i * stride + from - base, stride,
                               values + (from - token) * step, step, to - from, 1, head_dim,
                               kv_type);
            }
            if (later || first == end)
                continue;
            float *out = results + line * head_dim;
            const float *seen = weights + line * stride + first - base;
            const char *from = values + (first - token) * step;
            long count = end - first;
            switch (together) {
#define CASE(LINES)                                                                            \
    case LINES:                                                                                \
        add_values(out, seen, stride, from, step, count, LINES, head_dim, kv_type);            \
        break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
            }
        }
    }
}

/* Write where the keys of LANES tokens lie, the first at position `chunk`. For a token that no query
 * sees it is the place of one that is seen.
 */
INLINE void find_keys(const Attention *o, const Block *block, long chunk, const char **places,
                      long token_width, int kv_type) {
    const char *place = NULL;
    long first = 0, behind = 0;
    for (int lane = 0; lane < LANES; lane++) {
        long token = chunk + lane < block->first ? block->first : chunk + lane;
        token = token < block->end ? token : block->end - 1;
        if (!place || token >= behind) {
            place = token_at(o, o->keys, o->fresh_keys, block->row, token, token_width, kv_type);
            first = token;
            behind = run_end(o, block->row, token, block->end);
        }
        places[lane] = place + (token - first) * token_width * size_of(kv_type);
    }
}

/* Attend with some heads of the queries of a block: scores, the softmax, and the sums of values.
 *
 * A line is a query with one of its heads. Each line sums in the order of the tokens' positions, so
 * no bit depends on the other queries, or on where the tokens lie.
 */
INLINE void attend(const Attention *o, const Part *part, long head_dim, int kv_type) {
    Block block = block_of(o, part->block);
    long width = head_width(head_dim, kv_type);
    long token_width = o->kv_heads * width;
    long step = token_width * size_of(kv_type);
    long lines = block.count * o->group; /* that share a head of keys */
    long num_lines = part->num_heads * lines;
    long base = block.first / LANES * LANES;
    long padded = (block.end - base + LANES - 1) / LANES * LANES;

    /* Queries in fp32 [num_lines, head_dim], scores [num_lines, padded], results as queries. */
    float *queries = malloc(sizeof(float) * (size_t)(num_lines * (2 * head_dim + padded)));
    float *scores = queries + num_lines * head_dim;
    float *results = scores + num_lines * padded;
    for (long head = 0; head < part->num_heads; head++)
        for (long line = 0; line < lines; line++) {
            long of_group = (part->first_head + head) * o->group + line % o->group;
            long from = (block.first_query + line / o->group) * o->query_stride;
            float *query = queries + (head * lines + line) * head_dim;
            for (long i = 0; i < head_dim; i += LANES) {
                Floats given = load(o->query, from + of_group * head_dim + i, o->type);
                store(query, i, given * o->scale, FP32);
            }
        }

    const char *places[LANES], *next[LANES];
    find_keys(o, &block, base, places, token_width, kv_type);
    for (long chunk = base; chunk < block.end; chunk += LANES) {
        int has_next = chunk + LANES < block.end;
        if (has_next)
            find_keys(o, &block, chunk + LANES, next, token_width, kv_type);
        for (long head = 0; head < part->num_heads; head++) {
            const char *keys[LANES];
            long offset = (part->first_head + head) * width * size_of(kv_type);
            for (int lane = 0; lane < LANES; lane++) {
                keys[lane] = places[lane] + offset;
                if (has_next && block.count == 1)
                    prefetch(next[lane] + offset, width * size_of(kv_type));
            }
            long first_line = head * lines;
            score_chunk(&block, o->group, queries + first_line * head_dim,
                        scores + first_line * padded + chunk - base, lines, padded, chunk, keys,
                        head_dim, kv_type);
        }
        if (has_next)
            memcpy(places, next, sizeof places);
    }

    for (long line = 0; line < num_lines; line++) {
        long query = line % lines / o->group;
        long end = (block.ends[query] - base + LANES - 1) / LANES * LANES;
        softmax(scores + line * padded, (block.firsts[query] - base) / LANES * LANES, end);
    }

    memset(results, 0, sizeof(float) * (size_t)(num_lines * head_dim));
    long token = block.first;
    while (token < block.end) {
        long behind = run_end(o, block.row, token, block.end);
        const char *values = token_at(o, o->values, o->fresh_values, block.row, token, token_width,
                                      kv_type);
        const char *later = NULL;
        if (behind < block.end && block.count == 1)
            later = token_at(o, o->values, o->fresh_values, block.row, behind, token_width,
                             kv_type);
        for (long head = 0; head < part->num_heads; head++) {
            long offset = (part->first_head + head) * width * size_of(kv_type);
            if (later)
                for (long i = 0; i < behind - token && behind + i < block.end; i++)
                    prefetch(later + i * step + offset, width * size_of(kv_type));
            long first_line = head * lines;
            add_run(&block, o->group, results + first_line * head_dim,
                    scores + first_line * padded, lines, padded, base, values + offset, step,
                    token, behind, head_dim, kv_type);
        }
        token = behind;
    }

    for (long head = 0; head < part->num_heads; head++)
        for (long line = 0; line < lines; line++) {
            long of_group = (part->first_head + head) * o->group + line % o->group;
            long query = block.first_query + line / o->group;
            long place = (query * o->kv_heads * o->group + of_group) * head_dim;
            const float *result = results + (head * lines + line) * head_dim;
            void *out = (void *)at(o->out, place, o->type);
            for (long i = 0; i < head_dim; i += LANES)
                store(out, i, load(result, i, FP32), o->type);
        }
    free(queries);
}

INLINE void attend_in(const Attention *o, const Part *part, int kv_type) {
    /* With a number that the compiler knows, the loops over a head become registers. */
    if (o->head_dim == 32)
        attend(o, part, 32, kv_type);
    else if (o->head_dim == 64)
        attend(o, part, 64, kv_type);
    else if (o->head_dim == 128)
        attend(o, part, 128, kv_type);
    else
        attend(o, part, o->head_dim, kv_type);
}

static void attention_task(const void *arguments, long number) {
    const Parts *parts = arguments;
    const Attention *o = parts->attention;
    const Part *part = parts->parts + number;
    switch (o->kv_type) {
    case FP32: attend_in(o, part, FP32); break;
    case BF16: attend_in(o, part, BF16); break;
    default: attend_in(o, part, INT8);
    }
}

/* Cut blocks into parts for threads, and return their number.
 *
 * The heads of a single query are few parts, because its keys lie side by side. A block of several
 * queries has a part for each head, and the blocks of a row that read the same head come together,
 * while its keys are in the cache.
 */
static long cut(const Attention *o, long num_blocks, long threads, Part *parts) {
    int heads = (int)o->kv_heads;
    while (threads > 1 && num_blocks * (o->kv_heads / heads) < 4 * threads && heads % 2 == 0)
        heads /= 2;
    long count = 0;
    long block = 0;
    while (block < num_blocks) {
        const int32_t *first = o->blocks + 3 * block;
        long behind = block + 1;
        if (first[2] == 1) {
            for (int head = 0; head < o->kv_heads; head += heads)
                parts[count++] = (Part){(int)block, head, heads};
        } else {
            while (behind < num_blocks && o->blocks[3 * behind] == first[0])
                behind++;
            for (int head = 0; head < o->kv_heads; head++)
                for (long each = block; each < behind; each++)
                    parts[count++] = (Part){(int)each, head, 1};
        }
        block = behind;
    }
    return count;
}

/* Write the attention [queries, kv_heads * group, head_dim] of queries to keys of their rows.
 *
 * `keys` and `values` are [pages, page_size, kv_heads, head width] of a type of their own, fresh
 * ones [tokens, kv_heads, head width]. A window of 0 has no limit.
 */
void paged_attention(const Attention *attention, long num_blocks, long threads) {
    Part *parts = malloc(sizeof(Part) * (size_t)(num_blocks * attention->kv_heads));
    Parts all = {attention, parts};
    run(attention_task, &all, cut(attention, num_blocks, threads, parts), threads);
    free(parts);
}

long queries_at_once(void) {
    return QUERIES_AT_ONCE;
}


/* --- Products of rows with a weight */

/* A weight [outputs, inputs] lies in panels of PANEL outputs, [panels, inputs, PANEL] in fp32 and
 * [panels, inputs / 2, PANEL, 2] in bf16, with zeros behind the last output. A panel is read once
 * for ROWS_AT_ONCE rows, whose sums stay in registers. Each sum goes through the inputs in their
 * order, so a row does not depend on the rows beside it.
 */
#define PANEL (VECTORS * LANES)
#define ROWS_AT_ONCE 6

typedef struct {
    void *out;
    const void *x;
    const void *weight;
    const float *bias;
    long rows, stride, inputs, outputs;
    long chunk; /* rows of a task */
    int is_bf16;
} Product;

INLINE void multiply(const Product *o, const char *panel, long first, const int rows, long column,
                     int is_bf16) {
    Floats sums[ROWS_AT_ONCE][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < VECTORS; vector++)
            sums[row][vector] = (Floats){0};

    if (!is_bf16) {
        const float *x = (const float *)o->x + first * o->stride;
        for (long input = 0; input < o->inputs; input++) {
            Floats weights[VECTORS];
            for (int vector = 0; vector < VECTORS; vector++)
                weights[vector] = load(panel, input * PANEL + vector * LANES, 0);
#pragma GCC unroll 6
            for (int row = 0; row < rows; row++) {
                float value = x[row * o->stride + input];
#pragma GCC unroll 4
                for (int vector = 0; vector < VECTORS; vector++)
                    sums[row][vector] += value * weights[vector];
            }
        }
    } else {
        const uint16_t *x = (const uint16_t *)o->x + first * o->stride;
        for (long input = 0; input < o->inputs; input += 2) {
            Words weights[VECTORS];
            for (int vector = 0; vector < VECTORS; vector++) {
                const char *pairs = at(panel, input * PANEL + 2 * vector * LANES, 1);
                memcpy(&weights[vector], pairs, sizeof(Words));
            }
#pragma GCC unroll 6
            for (int row = 0; row < rows; row++) {
                uint32_t pair;
                memcpy(&pair, x + row * o->stride + input, sizeof pair);
#pragma GCC unroll 4
                for (int vector = 0; vector < VECTORS; vector++) {
#if defined(__AVX512BF16__)
                    Words pairs = (Words){0} + pair;
                    sums[row][vector] = (Floats)_mm512_dpbf16_ps(
                        (__m512)sums[row][vector], (__m512bh)pairs, (__m512bh)weights[vector]);
#else
                    Floats low = (Floats)(weights[vector] << 16);
                    Floats high = (Floats)(weights[vector] & 0xffff0000u);
                    Words pairs = (Words){0} + pair;
                    sums[row][vector] += (Floats)(pairs << 16) * low;
                    sums[row][vector] += (Floats)(pairs & 0xffff0000u) * high;
#endif
                }
            }
        }
    }

    long width = o->outputs - column < PANEL ? o->outputs - column : PANEL;
    for (int row = 0; row < rows; row++) {
        char whole[4 * PANEL];
        for (int vector = 0; vector < VECTORS; vector++) {
            Floats sum = sums[row][vector];
            if (o->bias)
                sum += load(o->bias, column + vector * LANES, 0);
            store(whole, vector * LANES, sum, is_bf16);
        }
        void *out = (void *)at(o->out, (first + row) * o->outputs + column, is_bf16);
        memcpy(out, whole, (size_t)width * (is_bf16 ? 2 : 4));
    }
}

/* Return how many of the rows that are left come next, when they are cut into equal parts. */
INLINE long next_rows(long left) {
    long parts = (left + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    return (left + parts - 1) / parts;
}

INLINE void multiply_rows(const Product *o, long panel, long first, long behind, int is_bf16) {
    const char *weight = at(o->weight, panel * o->inputs * PANEL, is_bf16);
    while (first < behind) {
        long rows = next_rows(behind - first);
        switch (rows) {
        case 1: multiply(o, weight, first, 1, panel * PANEL, is_bf16); break;
        case 2: multiply(o, weight, first, 2, panel * PANEL, is_bf16); break;
        case 3: multiply(o, weight, first, 3, panel * PANEL, is_bf16); break;
        case 4: multiply(o, weight, first, 4, panel * PANEL, is_bf16); break;
        case 5: multiply(o, weight, first, 5, panel * PANEL, is_bf16); break;
        default: multiply(o, weight, first, 6, panel * PANEL, is_bf16);
        }
        first += rows;
    }
}

static void product_task(const void *arguments, long number) {
    const Product *o = arguments;
    long panels = (o->outputs + PANEL - 1) / PANEL;
    long first = number / panels * o->chunk;
    long behind = first + o->chunk < o->rows ? first + o->chunk : o->rows;
    if (o->is_bf16)
        multiply_rows(o, number % panels, first, behind, 1);
    else
        multiply_rows(o, number % panels, first, behind, 0);
}

/* Return how many rows a task multiplies with a panel, so that there are tasks for all threads. */
static long rows_of_task(long rows, long panels, long threads) {
    long chunk = rows;
    while (threads > 1 && panels * ((rows + chunk - 1) / chunk) < 4 * threads &&
           chunk > 2 * ROWS_AT_ONCE)
        chunk = (chunk / 2 + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE * ROWS_AT_ONCE;
    return chunk;
}

/* Write x [rows, inputs] times a packed weight, plus a bias [panels * PANEL] if there is one. */
void linear(void *out, const void *x, long stride, const void *weight, const float *bias, long rows,
            long inputs, long outputs, int is_bf16, long threads) {
    if (rows == 0)
        return;
    long panels = (outputs + PANEL - 1) / PANEL;
    long chunk = rows_of_task(rows, panels, threads);
    Product product = {out, x, weight, bias, rows, stride, inputs, outputs, chunk, is_bf16};
    long chunks = (rows + chunk - 1) / chunk;
    run(product_task, &product, panels * chunks, threads);
}

/* --- Products in int8 */

/* A row is rounded to 8 bits by a scale of its own, an output's weights by another one. A weight
 * [outputs, inputs] lies in panels [panels, width / 4, PANEL, 4], with zeros behind the last input
 * and output. `width` is the next multiple of LANES. Sums are whole numbers below 2^31, so no order
 * of summation changes them.
 *
 * The instructions multiply unsigned bytes of a row by signed bytes of a weight. So 128 is added to
 * a row's bytes, and `offsets`, 128 times the sum of an output's weights, are subtracted again.
 */
#define ZERO 128
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define WEIGHT_PEAK 127
#else
#define WEIGHT_PEAK 63 /* two products must fit 16 bits: 2 * 255 * 63 < 2^15 */
#endif

typedef struct {
    void *out;
    const void *x;
    uint8_t *bytes;    /* [rows, width] */
    float *row_scales; /* [rows] */
    const int8_t *weight;
    const float *scales;    /* [panels * PANEL] */
    const int32_t *offsets; /* [panels * PANEL] */
    const float *bias;      /* [panels * PANEL], or null */
    long rows, stride, inputs, width, outputs;
    long chunk; /* rows of a task */
    int is_bf16;
} ByteProduct;

/* Load elements from `index` on, with zeros behind the last one. */
INLINE Floats load_within(const void *tensor, long index, long size, int is_bf16) {
    if (index + LANES <= size)
        return load(tensor, index, is_bf16);
    char rest[4 * LANES] = {0};
    memcpy(rest, at(tensor, index, is_bf16), (size_t)(size - index) * (is_bf16 ? 2 : 4));
    return load(rest, 0, is_bf16);
}

INLINE void round_row(const ByteProduct *o, long row, int is_bf16) {
    const Floats none = {0};
    const void *x = at(o->x, row * o->stride, is_bf16);
    uint8_t *target = o->bytes + row * o->width;
    Floats largest = none;
    Floats spoiled = none; /* becomes NaN where a number is not finite */
    for (long i = 0; i < o->width; i += LANES) {
        Floats value = load_within(x, i, o->inputs, is_bf16);
        Floats size = choose(value < 0.0f, -value, value);
        largest = choose(size > largest, size, largest);
        spoiled += value * 0.0f;
    }
    float peak = largest_lane(largest);

    float steps = peak > 1e-30f ? 127.0f / peak : 0.0f;
    o->row_scales[row] = (steps > 0.0f ? peak / 127.0f : 0.0f) + sum(spoiled);
    for (long i = 0; i < o->width; i += LANES) {
        Floats rounded = (load_within(x, i, o->inputs, is_bf16) * steps + WHOLE) - WHOLE;
        Ints number = __builtin_convertvector(rounded, Ints) + ZERO;
        UnsignedBytes bytes = __builtin_convertvector(number, UnsignedBytes);
        memcpy(target + i, &bytes, sizeof bytes);
    }
}

static void round_task(const void *arguments, long number) {
    const ByteProduct *o = arguments;
    long behind = (number + 1) * ROWS_OF_TASK;
    if (behind > o->rows)
        behind = o->rows;
    for (long row = number * ROWS_OF_TASK; row < behind; row++) {
        if (o->is_bf16)
            round_row(o, row, 1);
        else
            round_row(o, row, 0);
    }
}

/* Add to each lane of `sums` the products of its four bytes. */
INLINE Ints add_products(Ints sums, Ints bytes, Ints weights) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)bytes, (__m512i)weights);
#elif defined(__AVX512F__)
    __m512i pairs = _mm512_maddubs_epi16((__m512i)bytes, (__m512i)weights);
    return sums + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)bytes, (__m256i)weights);
#else
    __m256i pairs = _mm256_maddubs_epi16((__m256i)bytes, (__m256i)weights);
    return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

INLINE void multiply_bytes(const ByteProduct *o, const int8_t *panel, long first, const int rows,
                           long column) {
    Ints sums[ROWS_AT_ONCE][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < VECTORS; vector++)
            sums[row][vector] = (Ints){0};

    const uint8_t *x = o->bytes + first * o->width;
    for (long input = 0; input < o->width; input += 4) {
        Ints weights[VECTORS];
        for (int vector = 0; vector < VECTORS; vector++)
            memcpy(&weights[vector], panel + input * PANEL + 4 * vector * LANES, sizeof(Ints));
#pragma GCC unroll 6
        for (int row = 0; row < rows; row++) {
            int32_t four;
            memcpy(&four, x + row * o->width + input, sizeof four);
            Ints bytes = (Ints){0} + four;
#pragma GCC unroll 4
            for (int vector = 0; vector < VECTORS; vector++)
                sums[row][vector] = add_products(sums[row][vector], bytes, weights[vector]);
        }
    }

    long width = o->outputs - column < PANEL ? o->outputs - column : PANEL;
    for (int row = 0; row < rows; row++) {
        char whole[4 * PANEL];
        for (int vector = 0; vector < VECTORS; vector++) {
            long output = column + vector * LANES;
            Ints offsets;
            memcpy(&offsets, o->offsets + output, sizeof offsets);
            Floats sum = __builtin_convertvector(sums[row][vector] - offsets, Floats);
            sum *= load(o->scales, output, 0) * o->row_scales[first + row];
            if (o->bias)
                sum += load(o->bias, output, 0);
            store(whole, vector * LANES, sum, o->is_bf16);
        }
        void *out = (void *)at(o->out, (first + row) * o->outputs + column, o->is_bf16);
        memcpy(out, whole, (size_t)width * (o->is_bf16 ? 2 : 4));
    }
}

static void byte_product_task(const void *arguments, long number) {
    const ByteProduct *o = arguments;
    long panels = (o->outputs + PANEL - 1) / PANEL;
    long first = number / panels * o->chunk;
    long behind = first + o->chunk < o->rows ? first + o->chunk : o->rows;
    long column = number % panels * PANEL;
    const int8_t *panel = o->weight + column * o->width;
    while (first < behind) {
        long rows = next_rows(behind - first);
        switch (rows) {
        case 1: multiply_bytes(o, panel, first, 1, column); break;
        case 2: multiply_bytes(o, panel, first, 2, column); break;
        case 3: multiply_bytes(o, panel, first, 3, column); break;
        case 4: multiply_bytes(o, panel, first, 4, column); break;
        case 5: multiply_bytes(o, panel, first, 5, column); break;
        default: multiply_bytes(o, panel, first, 6, column);
        }
        first += rows;
    }
}

/* Write x [rows, inputs], rounded, times a packed weight in int8, plus a bias if there is one. */
void byte_linear(void *out, const void *x, long stride, const int8_t *weight, const float *scales,
                 const int32_t *offsets, const float *bias, long rows, long inputs, long outputs,
                 int is_bf16, long threads) {
    if (rows == 0)
        return;
    long width = (inputs + LANES - 1) / LANES * LANES;
    float *row_scales = malloc((size_t)rows * ((size_t)width + sizeof(float)));
    ByteProduct product = {.out = out, .x = x, .bytes = (uint8_t *)(row_scales + rows),
                           .row_scales = row_scales, .weight = weight, .scales = scales,
                           .offsets = offsets, .bias = bias, .rows = rows, .stride = stride,
                           .inputs = inputs, .width = width, .outputs = outputs,
                           .is_bf16 = is_bf16};
    long parts = (rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK;
    run(round_task, &product, parts, rows * inputs < ALONE ? 1 : threads);

    long panels = (outputs + PANEL - 1) / PANEL;
    product.chunk = rows_of_task(rows, panels, threads);
    run(byte_product_task, &product, panels * ((rows + product.chunk - 1) / product.chunk),
        threads);
    free(row_scales);
}


/* --- Whole layers */

/* A weight as `linear` or, with a `kind` of INT8, `byte_linear` has it. */
typedef struct {
    const void *weight;
    const float *scales;    /* of INT8 alone, like `offsets` */
    const int32_t *offsets;
    const float *bias; /* or null */
    long inputs, outputs;
    long kind;
} Weight;

/* A layer of a decoder. `heads` makes queries, keys and values, behind the gates of attention's
 * results if there are any.
 */
typedef struct {
    Weight heads, attended, gate_up, down;
    const void *attention_norm, *mlp_norm; /* [hidden], or null */
} Layer;

/* Rows of a step, whose keys and values all go to the pools. `attention` is complete but for what
 * differs between layers: the queries, the pools and the result.
 */
typedef struct {
    const Attention *attention;
    const void *cosines, *sines; /* [rows, head_dim] */
    const int64_t *places;       /* [rows]: where the pools keep the rows' own keys and values */
    char *keys, *values;         /* the pools of slot 0 */
    long slot_bytes;             /* from the pool of a slot to that of the next one */
    long rows, num_blocks, hidden;
    long is_gated;  /* whether a gate opens attention's results */
    long is_signed; /* as `rotate` has it */
    float eps;
    long threads;
} Step;

static void multiply_by(const Weight *o, void *out, const void *x, long stride, const Step *step) {
    int is_bf16 = step->attention->type;
    if (o->kind == INT8)
        byte_linear(out, x, stride, o->weight, o->scales, o->offsets, o->bias, step->rows, o->inputs,
                    o->outputs, is_bf16, step->threads);
    else
        linear(out, x, stride, o->weight, o->bias, step->rows, o->inputs, o->outputs, is_bf16,
               step->threads);
}

INLINE void add_to_rows(const Operands *o, long number, int is_bf16) {
    FOR_ROWS(o, number)
        for (long i = row * o->width; i < (row + 1) * o->width; i += LANES)
            store(o->out, i, load(o->out, i, is_bf16) + load(o->first, i, is_bf16), is_bf16);
}

static void add_task(const void *arguments, long number) {
    const Operands *o = arguments;
    if (o->is_bf16)
        add_to_rows(o, number, 1);
    else
        add_to_rows(o, number, 0);
}

static void add_rows(void *out, const void *x, const Step *step) {
    Operands operands = {.out = out, .first = x, .rows = step->rows, .width = step->hidden,
                         .is_bf16 = step->attention->type};
    run_rows(add_task, &operands, step->threads);
}

static void attend_to_slot(const Step *step, const Layer *layer, char *heads, char *gated, char *out,
                           long slot) {
    Attention attention = *step->attention;
    long width = attention.head_dim * attention.kv_heads; /* of keys, and of values */
    long query_width = width * attention.group;
    long stride = layer->heads.outputs;
    int type = attention.type;
    char *query = heads + (step->is_gated ? query_width * size_of(type) : 0);
    char *key = query + query_width * size_of(type);
    char *value = key + width * size_of(type);
    char *keys = step->keys + slot * step->slot_bytes;
    char *values = step->values + slot * step->slot_bytes;

    rotate(query, stride, step->cosines, step->sines, step->rows,
           (attention.group + 1) * attention.kv_heads, attention.head_dim, (int)step->is_signed,
           type, step->threads);
    write_rows(keys, step->places, key, stride, step->rows, attention.kv_heads, attention.head_dim,
               type, attention.kv_type);
    write_rows(values, step->places, value, stride, step->rows, attention.kv_heads,
               attention.head_dim, type, attention.kv_type);
    attention.query = query;
    attention.query_stride = stride;
    attention.keys = keys;
    attention.values = values;
    attention.out = step->is_gated ? gated : out;
    paged_attention(&attention, step->num_blocks, step->threads);
    if (step->is_gated)
        gate(out, heads, stride, gated, query_width, step->rows, query_width, 0, type,
             step->threads);
}

/* Run `count` layers over `hidden` [rows, hidden], in place. The first one has the slot `slot`.
 *
 * Every operator is one of those above, so a result has the same bits as by calling each of them.
 */
void run_layers(const Step *step, const Layer *layers, long count, char *hidden, long slot) {
    int type = step->attention->type;
    long query_width = step->attention->head_dim * step->attention->kv_heads *
                       step->attention->group;
    long widest = 0, mlp_width = 0;
    for (long i = 0; i < count; i++) {
        widest = layers[i].heads.outputs > widest ? layers[i].heads.outputs : widest;
        widest = layers[i].gate_up.outputs > widest ? layers[i].gate_up.outputs : widest;
        mlp_width = layers[i].down.inputs > mlp_width ? layers[i].down.inputs : mlp_width;
    }
    long narrow = mlp_width > query_width ? mlp_width : query_width;
    long row_bytes = (2 * step->hidden + widest + 2 * narrow) * size_of(type);
    char *normed = aligned_alloc(64, (size_t)(step->rows * row_bytes + 63) / 64 * 64);
    char *added = normed + step->rows * step->hidden * size_of(type);
    char *wide = added + step->rows * step->hidden * size_of(type);
    char *inner = wide + step->rows * widest * size_of(type);
    char *gated = inner + step->rows * narrow * size_of(type);

    for (long i = 0; i < count; i++) {
        const Layer *layer = layers + i;
        rms_norm(normed, hidden, step->hidden, layer->attention_norm, step->eps, step->rows,
                 step->hidden, type, step->threads);
        multiply_by(&layer->heads, wide, normed, step->hidden, step);
        attend_to_slot(step, layer, wide, gated, inner, slot + i);
        multiply_by(&layer->attended, added, inner, query_width, step);
        add_rows(hidden, added, step);

        rms_norm(normed, hidden, step->hidden, layer->mlp_norm, step->eps, step->rows,
                 step->hidden, type, step->threads);
        multiply_by(&layer->gate_up, wide, normed, step->hidden, step);
        long width = layer->down.inputs;
        gate(inner, wide, 2 * width, wide + width * size_of(type), 2 * width, step->rows, width, 1,
             type, step->threads);
        multiply_by(&layer->down, added, inner, width, step);
        add_rows(hidden, added, step);
    }
    free(normed);
}

/* A pass through a stack of layers, of which the first one has the slot `first_slot`. */
typedef struct {
    const Layer *layers;
    long count, first_slot;
    long is_high; /* whether it makes z_h, else z_l */
} Pass;

/* Run the passes of an HRM from one of its stacks to the next, over states z_h and z_l
 * [rows, hidden], in place. A pass runs a stack's layers on the sum of both, and a norm.
 */
void run_passes(const Step *step, const Pass *passes, long count, char *z_h, char *z_l) {
    int type = step->attention->type;
    size_t bytes = (size_t)(step->rows * step->hidden) * size_of(type);
    char *hidden = malloc(bytes);
    for (long i = 0; i < count; i++) {
        const Pass *pass = passes + i;
        memcpy(hidden, z_l, bytes);
        add_rows(hidden, z_h, step);
        run_layers(step, pass->layers, pass->count, hidden, pass->first_slot);
        rms_norm(pass->is_high ? z_h : z_l, hidden, step->hidden, NULL, step->eps, step->rows,
                 step->hidden, type, step->threads);
    }
    free(hidden);
}


/* --- Whole layers of encoders */

/* A layer of an encoder whose norms are behind its parts. `heads` makes queries, keys and values.
 * A norm has a scale and a shift [hidden].
 */
typedef struct {
    Weight heads, attended, up, down;
    const void *attention_scale, *attention_shift, *mlp_scale, *mlp_shift;
} EncoderLayer;

/* Put the layer norm of the sum of `out` and `first` into `out`. */
INLINE void norm_sums(const Operands *o, long number, int is_bf16) {
    FOR_ROWS(o, number) {
        void *out = (void *)at(o->out, row * o->width, is_bf16);
        const void *x = at(o->first, row * o->width, is_bf16);
        Floats total = {0};
        for (long i = 0; i < o->width; i += LANES) {
            store(out, i, load(out, i, is_bf16) + load(x, i, is_bf16), is_bf16);
            total += load(out, i, is_bf16);
        }
        float mean = sum(total) / (float)o->width;
        Floats squares = {0};
        for (long i = 0; i < o->width; i += LANES) {
            Floats distance = load(out, i, is_bf16) - mean;
            squares += distance * distance;
        }
        float scale = 1.0f / __builtin_sqrtf(sum(squares) / (float)o->width + o->eps);
        for (long i = 0; i < o->width; i += LANES) {
            Floats value = (load(out, i, is_bf16) - mean) * scale;
            value = value * load(o->second, i, is_bf16) + load(o->third, i, is_bf16);
            store(out, i, value, is_bf16);
        }
    }
}

/* Return x times the normal distribution's share below x. Its error is below 1e-7.
 *
 * The error function is formula 7.1.26 of Abramowitz and Stegun (1964).
 */
INLINE Floats gelu(Floats x) {
    Floats size = choose(x < 0.0f, -x, x) * 0.70710678f;
    Floats t = 1.0f / (1.0f + 0.3275911f * size);
    Floats power = 1.061405429f * t - 1.453152027f;
    power = power * t + 1.421413741f;
    power = power * t - 0.284496736f;
    power = power * t + 0.254829592f;
    Floats rest = power * t * exponential(-size * size); /* 1 less the error function */
    return 0.5f * x * choose(x < 0.0f, rest, 2.0f - rest);
}

INLINE void gelu_rows(const Operands *o, long number, int is_bf16) {
    FOR_ROWS(o, number)
        for (long i = row * o->width; i < (row + 1) * o->width; i += LANES)
            store(o->out, i, gelu(load(o->out, i, is_bf16)), is_bf16);
}

static void norm_sums_task(const void *arguments, long number) {
    const Operands *o = arguments;
    if (o->is_bf16)
        norm_sums(o, number, 1);
    else
        norm_sums(o, number, 0);
}

static void gelu_task(const void *arguments, long number) {
    const Operands *o = arguments;
    if (o->is_bf16)
        gelu_rows(o, number, 1);
    else
        gelu_rows(o, number, 0);
}

static void add_and_norm(char *hidden, const char *x, const void *scale, const void *shift,
                         const Step *step) {
    Operands operands = {.out = hidden, .first = x, .second = scale, .third = shift,
                         .eps = step->eps, .rows = step->rows, .width = step->hidden,
                         .is_bf16 = step->attention->type};
    run_rows(norm_sums_task, &operands, step->threads);
}

/* Run `count` layers over `hidden` [rows, hidden], in place.
 *
 * The keys and values of a row's tokens are all fresh, and of the type of the states.
 */
void run_encoder_layers(const Step *step, const EncoderLayer *layers, long count, char *hidden) {
    Attention attention = *step->attention;
    long rows = step->rows;
    long element = size_of(attention.type);
    long width = attention.head_dim * attention.kv_heads;
    long widest = 3 * width;
    for (long i = 0; i < count; i++)
        widest = layers[i].up.outputs > widest ? layers[i].up.outputs : widest;
    long row_bytes = (step->hidden + widest + 3 * width) * element;
    char *added = aligned_alloc(64, (size_t)(rows * row_bytes + 63) / 64 * 64);
    char *wide = added + rows * step->hidden * element;
    char *keys = wide + rows * widest * element;
    char *values = keys + rows * width * element;
    char *inner = values + rows * width * element;
    attention.query = wide;
    attention.query_stride = 3 * width;
    attention.fresh_keys = keys;
    attention.fresh_values = values;
    attention.out = inner;

    for (long i = 0; i < count; i++) {
        const EncoderLayer *layer = layers + i;
        multiply_by(&layer->heads, wide, hidden, step->hidden, step);
        for (long row = 0; row < rows; row++) {
            const char *heads = wide + row * 3 * width * element;
            memcpy(keys + row * width * element, heads + width * element,
                   (size_t)(width * element));
            memcpy(values + row * width * element, heads + 2 * width * element,
                   (size_t)(width * element));
        }
        paged_attention(&attention, step->num_blocks, step->threads);
        multiply_by(&layer->attended, added, inner, width, step);
        add_and_norm(hidden, added, layer->attention_scale, layer->attention_shift, step);

        long mlp_width = layer->up.outputs;
        multiply_by(&layer->up, wide, hidden, step->hidden, step);
        Operands operands = {.out = wide, .rows = rows, .width = mlp_width,
                             .is_bf16 = attention.type};
        run_rows(gelu_task, &operands, step->threads);
        multiply_by(&layer->down, added, wide, mlp_width, step);
        add_and_norm(hidden, added, layer->mlp_scale, layer->mlp_shift, step);
    }
    free(added);
}


/* --- Choice of tokens */

/* Gumbel-max over rows of logits, as worker/engine/sampler.py defines it, with its noise. */
typedef struct {
    int64_t *chosen;
    const float *logits;
    long width;
    const double *temperatures; /* 0 takes the likeliest token */
    const int64_t *top_ks;      /* 0 forbids nothing */
    const double *top_ps;       /* 1 forbids nothing */
    const double *min_ps;       /* 0 forbids nothing */
    const uint64_t *keys;
} Choice;

typedef uint64_t Longs __attribute__((vector_size(4 * LANES)));
typedef int32_t HalfInts __attribute__((vector_size(2 * LANES)));

/* A draw of noise lies between -3.7 and 36.8. */
#define MOST_NOISE 36.8f
/* More than the rounding of a bound on a draw and of a logit in fp32. */
#define MARGIN 1e-3f

typedef struct {
    float logit;
    float weight;
    long token;
} Candidate;

/* The constants of splitmix64, as in worker/engine/noise.py. */
#define GOLDEN 0x9E3779B97F4A7C15u
#define MIX1 0xBF58476D1CE4E5B9u
#define MIX2 0x94D049BB133111EBu

/* Return the noise of a token in fp64. */
static double exact_noise(uint64_t key, long token) {
    uint64_t bits = key + (uint64_t)(token + 1) * GOLDEN;
    bits = (bits ^ (bits >> 30)) * MIX1;
    bits = (bits ^ (bits >> 27)) * MIX2;
    bits = bits ^ (bits >> 31);
    double uniform = ((double)(bits >> 12) + 0.5) * 0x1p-52;
    return -log(-log(uniform));
}

/* Return 31 bits of what LANES / 2 uniform numbers lack to 1. `value` is of the first token. */
INLINE HalfInts draw_half(Longs value) {
    value = (value ^ (value >> 30)) * MIX1;
    value = (value ^ (value >> 27)) * MIX2;
    value = value ^ (value >> 31);
    return __builtin_convertvector(~value >> 33, HalfInts);
}

/* Return numbers that the noise of LANES tokens does not exceed, save by rounding.
 *
 * The noise -log(-log(u)) is at most -log(1 - u). The bits of a float are, as a whole number, a
 * line below its logarithm to the base 2: no more than 0.087 below it. `value` is the state of the
 * first LANES / 2 tokens, and `step` leads to that of the others.
 */
INLINE Floats most_noise(Longs value, uint64_t step) {
    HalfInts first = draw_half(value);
    HalfInts second = draw_half(value + step);
    Ints lack; /* times 2^31 */
    memcpy(&lack, &first, sizeof first);
    memcpy((char *)&lack + sizeof first, &second, sizeof second);
    Ints bits = (Ints)__builtin_convertvector(lack, Floats);
    const int32_t bits_of_one = (127 + 31) << 23;
    return __builtin_convertvector(bits_of_one - bits, Floats) * (0.69314718f / (1 << 23));
}

static int by_rank(const void *one, const void *other) {
    const Candidate *a = one;
    const Candidate *b = other;
    if (a->logit != b->logit)
        return a->logit > b->logit ? -1 : 1;
    return a->token < b->token ? -1 : 1;
}

#define BUCKETS 2048

/* The sum of some tokens' weights, and their number. */
typedef double Tally __attribute__((vector_size(2 * sizeof(double))));

/* A row's tokens, in buckets of their logits. The likeliest are in bucket 0. */
typedef struct {
    const float *logits;
    const float *scaled; /* padded to whole vectors; 0 for the likeliest token */
    Candidate *candidates;
    long width;
    float buckets_per_nat;
    int last_bucket; /* that holds a token */
    Tally tallies[BUCKETS];
} Ranking;

/* Return the buckets of the LANES tokens from `first` on. */
INLINE Ints buckets_of(const Ranking *o, long first) {
    const Floats last = (Floats){0} + (BUCKETS - 1);
    Floats place = load(o->scaled, first, FP32) * -o->buckets_per_nat;
    return __builtin_convertvector(choose(place < last, place, last), Ints);
}

static float smallest(const float *values, long width) {
    Floats least = {0};
    long whole = width / LANES * LANES;
    for (long i = 0; i < whole; i += LANES) {
        Floats value = load(values, i, FP32);
        least = choose(value < least, value, least);
    }
    float result = -largest_lane(-least);
    for (long i = whole; i < width; i++)
        result = values[i] < result ? values[i] : result;
    return result;
}

static void fill_buckets(Ranking *o) {
    float lowest = smallest(o->scaled, o->width);
    o->buckets_per_nat = BUCKETS / (lowest < -64.0f ? 64.0f : 1e-6f - lowest);
    memset(o->tallies, 0, sizeof o->tallies);
    for (long first = 0; first < o->width; first += LANES) {
        Ints buckets = buckets_of(o, first);
        /* e to the logit over the temperature, 1 for the likeliest token */
        Floats weights = exponential(load(o->scaled, first, FP32));
        int32_t bucket[LANES];
        float weight[LANES];
        memcpy(bucket, &buckets, sizeof bucket);
        memcpy(weight, &weights, sizeof weight);
        long num_tokens = o->width - first < LANES ? o->width - first : LANES;
        for (long lane = 0; lane < num_tokens; lane++)
            o->tallies[bucket[lane]] += (Tally){weight[lane], 1.0};
    }
    o->last_bucket = BUCKETS - 1;
    while (o->tallies[o->last_bucket][1] == 0.0)
        o->last_bucket--;
}

/* Return the last token, by rank, with fewer than `max_tokens` and less than `max_mass` before it.
 *
 * The likeliest token is first in rank, and of equals the one of the lower number. `mass` becomes
 * the mass up to the returned token.
 */
static long last_within(const Ranking *o, long max_tokens, double max_mass, double *mass) {
    Tally before = {0};
    int bucket = 0;
    while (bucket < o->last_bucket) {
        Tally after = before + o->tallies[bucket];
        if (!(after[0] < max_mass && after[1] < max_tokens))
            break;
        before = after;
        bucket++;
    }

    /* The bound lies among the tokens of this bucket. */
    long size = 0;
    for (long first = 0; first < o->width; first += LANES) {
        Ints is_inside = buckets_of(o, first) == bucket;
        if (!any(is_inside))
            continue;
        Floats weights = exponential(load(o->scaled, first, FP32));
        for (long lane = 0; lane < LANES && first + lane < o->width; lane++) {
            long token = first + lane;
            if (is_inside[lane])
                o->candidates[size++] = (Candidate){o->logits[token], weights[lane], token};
        }
    }
    qsort(o->candidates, (size_t)size, sizeof(Candidate), by_rank);
    long place = 0;
    do {
        before += (Tally){o->candidates[place].weight, 1.0};
        place++;
    } while (place < size && before[1] < max_tokens && before[0] < max_mass);
    *mass = before[0];
    return o->candidates[place - 1].token;
}

/* Set `scaled` to minus infinity for tokens that top-k and top-p forbid. */
static void forbid(const float *logits, float *scaled, long width, long top_k, double top_p) {
    Ranking *ranking = malloc(sizeof(Ranking) + (size_t)width * sizeof(Candidate));
    ranking->logits = logits;
    ranking->scaled = scaled;
    ranking->candidates = (Candidate *)(ranking + 1);
    ranking->width = width;
    fill_buckets(ranking);

    long max_tokens = top_k ? top_k : width;
    double max_mass = HUGE_VAL;
    double mass = 0.0;
    if (top_p < 1.0) {
        if (top_k)
            last_within(ranking, top_k, HUGE_VAL, &mass);
        else
            for (int bucket = 0; bucket <= ranking->last_bucket; bucket++)
                mass += ranking->tallies[bucket][0];
        max_mass = top_p * mass;
    }
    long last = last_within(ranking, max_tokens, max_mass, &mass);
    free(ranking);

    /* Of equals those up to `last` are allowed. */
    float bound = logits[last];
    for (long token = 0; token <= last; token++)
        scaled[token] = logits[token] < bound ? -__builtin_inff() : scaled[token];
    for (long token = last + 1; token < width; token++)
        scaled[token] = logits[token] <= bound ? -__builtin_inff() : scaled[token];
}

/* Return the first token with the largest logit, 0 where no logit is a number. */
static long likeliest(const float *logits, long width) {
    Floats most = (Floats){0} - __builtin_inff();
    long whole = width / LANES * LANES;
    for (long i = 0; i < whole; i += LANES) {
        Floats value = load(logits, i, 0);
        most = choose(value > most, value, most);
    }
    float peak = largest_lane(most);
    for (long i = whole; i < width; i++)
        peak = logits[i] > peak ? logits[i] : peak;
    long token = 0;
    while (token < whole && !any(load(logits, token, FP32) == peak))
        token += LANES;
    for (; token < width; token++)
        if (logits[token] == peak)
            return token;
    return 0;
}

static void choose_task(const void *arguments, long row) {
    const Choice *o = arguments;
    const float *logits = o->logits + row * o->width;
    long best = likeliest(logits, o->width);
    o->chosen[row] = best;
    double temperature = o->temperatures[row];
    if (temperature == 0.0)
        return;

    long padded = (o->width + LANES - 1) / LANES * LANES;
    float *scaled = malloc(sizeof(float) * (size_t)padded);
    float peak = logits[best];
    /* Below this temperature only equally likely tokens are near, and at 0. */
    float steps = (float)(1.0 / (temperature > 1e-30 ? temperature : 1e-30));
    for (long token = 0; token < o->width; token++)
        scaled[token] = (logits[token] - peak) * steps;
    for (long token = o->width; token < padded; token++)
        scaled[token] = -__builtin_inff();
    if (o->top_ks[row] || o->top_ps[row] < 1.0)
        forbid(logits, scaled, o->width, o->top_ks[row], o->top_ps[row]);
    if (o->min_ps[row] > 0.0) {
        double floor = log(o->min_ps[row]);
        for (long token = 0; token < o->width; token++)
            if (((double)logits[token] - peak) / temperature < floor)
                scaled[token] = -__builtin_inff();
    }

    /* Only tokens whose sum may be the largest so far are computed, in fp64. The likeliest token's
     * sum is a bound from the start. */
    uint64_t key = o->keys[row];
    float bound = (float)exact_noise(key, best) - MARGIN;
    double most = -HUGE_VAL;
    Longs state;
    for (int lane = 0; lane < LANES / 2; lane++)
        state[lane] = key + (uint64_t)(lane + 1) * GOLDEN;
    for (long i = 0; i < padded; i += LANES, state += LANES * GOLDEN) {
        Floats value = load(scaled, i, FP32);
        if (!any(value + MOST_NOISE > bound))
            continue;
        value += most_noise(state, LANES / 2 * GOLDEN);
        if (!any(value > bound))
            continue;
        store(scaled, i, value, FP32);
        for (long token = i; token < i + LANES; token++) {
            if (!(scaled[token] > bound))
                continue;
            double sum = ((double)logits[token] - peak) / temperature + exact_noise(key, token);
            if (sum > most) {
                most = sum;
                o->chosen[row] = token;
            }
            bound = (float)sum - MARGIN > bound ? (float)sum - MARGIN : bound;
        }
    }
    free(scaled);
}

/* Write a token for each row of logits [rows, width]. All else has an element for each row. */
void choose_tokens(int64_t *chosen, const float *logits, long rows, long width,
                   const double *temperatures, const int64_t *top_ks, const double *top_ps,
                   const double *min_ps, const uint64_t *keys, long threads) {
    Choice choice = {chosen, logits, width, temperatures, top_ks, top_ps, min_ps, keys};
    run(choose_task, &choice, rows, rows * width < ALONE ? 1 : threads);
}

/* Write for each row of x [rows, width] whether all its elements are finite. */
void all_finite(uint8_t *is_finite, const float *x, long rows, long width) {
    for (long row = 0; row < rows; row++) {
        const float *elements = x + row * width;
        long whole = width / LANES * LANES;
        Floats spoiled = {0}; /* becomes NaN where a number is not finite */
        for (long i = 0; i < whole; i += LANES)
            spoiled += load(elements, i, 0) * 0.0f;
        float rest = sum(spoiled);
        for (long i = whole; i < width; i++)
            rest += elements[i] * 0.0f;
        is_finite[row] = rest == 0.0f;
    }
}


/* The digest of this file, by which a compiled file of another version is found out. */
const char *source_digest(void) {
    return SOURCE_DIGEST;
}

int panel_width(void) {
    return PANEL;
}

int weight_peak(void) {
    return WEIGHT_PEAK;
}

int num_lanes(void) {
    return LANES;
}
