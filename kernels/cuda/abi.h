// Parameters of every CUDA kernel, written once: kernels include this file, bindgen makes the Rust side.
//
// Each kernel takes one of these structs by value. Pointers are device addresses. Sizes are elements unless the
// name says otherwise. No includes: only built-in types, alike on host and device.
#ifndef QWENVL_ABI_H
#define QWENVL_ABI_H

#define QWENVL_PAGE_TOKENS 64       // tokens of a KV page
#define QWENVL_NO_SLOT 0xffffffffu  // a row whose key and value are not kept
#define QWENVL_NO_VISUAL 0xffffffffu
#define QWENVL_NO_TILE 0xffffffffu

enum QwenvlEpilogue {
    QWENVL_STORE_F32 = 0,   // out f32 = y
    QWENVL_STORE = 1,       // out = y
    QWENVL_QUICK_GELU = 2,  // out = y · sigmoid(1.702 y)
    QWENVL_GELU = 3,        // out = y · Φ(y)
    QWENVL_RESIDUAL = 4,    // out f32 = residual + y; may be in place
    QWENVL_SWIGLU = 5,      // out = silu(gate) · up
    QWENVL_ROPE = 6,        // out = y, the first `n_rotated` columns turned
    QWENVL_ROPE_KV = 7,     // q turned to out; k turned and v to their pages
};

// Rotary angles: pair j of a head turns by row positions[row][axis(j)] of the table.
struct QwenvlRope {
    const float *angles;            // [positions, columns] of (cos, sin); 16-byte aligned, an even number of columns
    const unsigned int *positions;  // [rows, axes]
    unsigned int axes;
    unsigned int axis_end[3];  // pairs below axis_end[a] follow axis a; even
    unsigned int columns;
    unsigned int restart;  // 1: the columns of the table start anew at each axis
};

// One layer of the KV cache: pages of [2 (k, v), kv_heads, 64 tokens, head_dim].
struct QwenvlKv {
    void *pages;
    unsigned long long page_stride;  // elements from a page to the next
    unsigned int kv_heads;
    unsigned int head_dim;
};

struct QwenvlLinear {
    const void *x;          // [m, ldx]
    const void *w;          // records of 128 outputs x 128 inputs, see linear.cuh
    const float *bias;      // [n], 16-byte aligned, or null
    const float *residual;  // [m, ldo] f32
    void *out;              // [m, ldo]
    float *partials;        // sums of runs that share a strip
    unsigned int *arrivals; // [strips], zero before and after
    unsigned int m, n, k;   // k % 8 == 0
    unsigned int ldx, ldo;
    unsigned int epilogue;
    unsigned int half;    // 0: rows of W in order; else rows r and r + half of heads of 2·half are paired
    unsigned int n_runs;  // the plan's constant that cuts k; at most strips · groups
    unsigned int n_rotated;
    unsigned int n_q;  // columns of q in a qkv projection
    struct QwenvlRope rope;
    struct QwenvlKv kv;
    const unsigned int *slots;  // [m]: page · 64 + offset
    const float *norm_weight;   // [k] f32, kernels of a norm only: then x is f32
    float eps;
    unsigned int unused;
};

enum QwenvlSourceKind {
    QWENVL_AWQ4 = 0,
    QWENVL_GPTQ4 = 1,
    QWENVL_GPTQ8 = 2,
    QWENVL_BF16 = 3,
    QWENVL_F16 = 4,
    QWENVL_F32 = 5,
    QWENVL_RECORDS_BF16 = 6,  // of an embedding table: the records of the head
    QWENVL_RECORDS_F16 = 7,
};

struct QwenvlSource {
    const void *codes;   // as in the checkpoint; for 16- and 32-bit weights [n, k]
    const void *zeros;   // packed zero points
    const void *scales;  // f16 [groups, n]
    const unsigned int *groups;  // of codes: the row of scales and zeros for each `group` places
    unsigned int n;      // outputs of this part
};

#define QWENVL_NO_INPUT 0xffffffffu

struct QwenvlRepack {
    struct QwenvlSource sources[3];
    void *out;
    unsigned int n_sources;
    unsigned int n, k;  // of all parts together; of codes k counts places
    unsigned int half;
    unsigned int kind;         // of the sources
    unsigned int zero_offset;  // added to stored zero points: 0 for AWQ, 1 for GPTQ
    const unsigned int *inputs;  // of codes: [k], the input at each place or QWENVL_NO_INPUT; null for all in order
    unsigned int group;        // of codes: places with a scale, 128, 64 or 32
    unsigned int zeros;        // of 8-bit codes: whether zero points are kept
};

struct QwenvlSequence {
    unsigned int first;   // first row of its queries (and of its keys, where they are rows too)
    unsigned int rows;    // its queries
    unsigned int past;    // keys before the first query; prefill and decode only
    unsigned int pages;   // first entry of its page table
};

// A query tile of one head (or of the query heads of one key head) of one sequence: 32 bytes, copied by 16.
struct QwenvlAttentionTile {
    struct QwenvlSequence sequence;
    unsigned int head;
    unsigned int first_row;
    unsigned int next;    // prefill only: the next tile of the block that has this one, or QWENVL_NO_TILE
    unsigned int unused;
};

struct QwenvlAttention {
    const void *q;    // [rows, ldq]
    const void *k;    // vision only: [rows, ldq]
    const void *v;
    void *out;        // [rows, ldo]
    const struct QwenvlAttentionTile *tiles;  // longest first; 16-byte aligned
    const unsigned int *page_table;
    struct QwenvlKv kv;
    unsigned int ldq, ldo;
    unsigned int n_tiles;
    unsigned int group;   // query heads of a key head; 1 in the vision tower
    float scale_log2;     // log2(e) / sqrt(head_dim)
};

#define QWENVL_DECODE_TOKENS 256  // tokens of a split, up to the most splits
#define QWENVL_DECODE_SPLITS 64   // most splits of a sequence

struct QwenvlDecodeAttention {
    const void *q;  // [n_seqs, ldq]
    void *out;      // [n_seqs, ldo]
    const struct QwenvlSequence *sequences;  // past = keys before the new one, rows = 1; or both 0 for none
    const unsigned int *page_table;
    float *partials;         // [n_seqs, kv_heads, slots, group, head_dim], then as many [2]
    unsigned int *arrivals;  // [n_seqs, kv_heads], zero before and after
    struct QwenvlKv kv;
    unsigned int n_seqs;
    unsigned int group;  // query heads of a key head, at most 8
    unsigned int ldq, ldo;
    unsigned int max_splits;  // of any length: part of the order of sums
    unsigned int slots;       // splits of the longest context
    float scale_log2;
    unsigned int unused;
};

#define QWENVL_DECODE_GROUPS 72  // groups of 128 inputs of a run that decode_layers has room for

// A linear layer of few rows, and attention before it if `attention.n_seqs` > 0: 288 bytes, copied by 16.
struct QwenvlDecodeStep {
    struct QwenvlDecodeAttention attention;
    struct QwenvlLinear linear;  // normalised first if it has a `norm_weight`
};

struct QwenvlDecodeLayers {
    const struct QwenvlDecodeStep *steps;
    unsigned int *arrived;  // zero before and after
    unsigned int n_steps;
    unsigned int unused;
};

struct QwenvlNorm {
    const float *x;  // [·, cols]
    const float *weight;
    const float *bias;              // layer_norm only
    const unsigned int *row_index;  // rows of x to take, or null for all in order
    void *out;                      // [rows, cols]
    unsigned int rows, cols;
    float eps;
};

struct QwenvlEmbed {
    const void *table;  // [vocab, cols]
    const unsigned int *tokens;
    const void *visual;  // [visual rows, cols]
    const unsigned int *visual_index;
    float *out;  // [rows, cols]
    unsigned int rows, cols, vocab;
    unsigned int table_kind;  // QWENVL_BF16, QWENVL_F16, QWENVL_F32, or of QWENVL_RECORDS
};

// Rows or columns by index, activations, sums.
struct QwenvlPointwise {
    const void *x;  // [rows, cols], of select_columns [rows, ldx]
    const void *y;  // up of swiglu, residual of add; of select_rows and select_columns the indices
    void *out;      // [rows, cols]
    unsigned int rows, cols;
    unsigned int ldx;
};

// The unfused rotation and KV write.
struct QwenvlRotate {
    const void *x;  // [rows, cols]
    void *out;      // may be x
    unsigned int rows, cols;
    unsigned int n_rotated;  // columns in front that are turned; the rest are copied
    unsigned int head_dim;
    struct QwenvlRope rope;
};

struct QwenvlKvWrite {
    const void *k, *v;          // [rows, kv_heads · head_dim]
    const unsigned int *slots;  // [rows]: page · 64 + offset, or QWENVL_NO_SLOT
    struct QwenvlKv kv;
    unsigned int rows;
};

#define QWENVL_PATCH 14  // pixels of a side of a patch
#define QWENVL_MERGE 2   // patches of a side of a visual token

// One temporal slice of a picture.
struct QwenvlFrames {
    const unsigned char *frames[2];  // RGB, rows of 3 · width bytes; a picture names its frame twice
    unsigned int first_patch;        // among those of the call
    unsigned int grid_h, grid_w;     // patches
};

struct QwenvlPatchify {
    const struct QwenvlFrames *slices;  // ascending by first_patch
    const float *table;                 // [3, 256]: the normalised value of each byte
    void *out;                          // [rows, 1176]
    unsigned int n_slices;
    unsigned int first_row, rows;  // patches of the call to write; multiples of 4
};

struct QwenvlSampleRow {
    unsigned int seed[2];      // low word first
    unsigned int position[2];  // of the new token in its sequence, low word first
    float temperature;         // 0: the largest
    float top_p;               // 1: all
    float repetition_penalty;  // 1: none
    unsigned int top_k;        // 0: all
};

#define QWENVL_SAMPLE_SLICE 1024  // logits of one block of argmax
#define QWENVL_SAMPLE_BINS 1024   // into which sample counts ids by their scores
#define QWENVL_NO_TOKEN 0xffffffffu

struct QwenvlSample {
    const float *logits;    // [rows, vocab]
    float *scores;          // [rows, vocab], scratch
    unsigned int *history;  // [rows, history_words]: bits of the ids that occurred; the new one is added
    const struct QwenvlSampleRow *params;
    unsigned int *tokens;      // [rows]; QWENVL_NO_TOKEN if the logits are unusable
    unsigned long long *best;  // [rows, slices + 1], scratch; slices = ceil(vocab / QWENVL_SAMPLE_SLICE)
    unsigned long long *bins;  // [rows, 2, QWENVL_SAMPLE_BINS]: ids and their mass, zero before and after
    unsigned int *arrivals;    // [rows], zero before and after
    unsigned int rows, vocab, history_words;
};

#endif
