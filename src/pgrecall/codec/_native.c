/*
 * The loops that Python is too slow for: PostgreSQL's page checksums, the walk
 * over the records of a WAL segment, writing many single pages, and looking at
 * every file of a directory.
 *
 * The first two read untrusted bytes: every access is bounded by the buffer's length,
 * and no length found in the data is used before it was compared with what is
 * left. The pure fallbacks are pages_numpy.py and wal_scan_python.py; tests
 * hold them equal, on real WAL and on mutated bytes.
 *
 * Sources: PostgreSQL's storage/checksum_impl.h, access/xlog_internal.h,
 * access/xlogrecord.h, access/xact.h, catalog/pg_control.h and xactdesc.c,
 * versions 13 to 18. Integers are in the byte order of the machine, as
 * PostgreSQL writes them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__GNUC__) && defined(__gnu_linux__) && defined(__GLIBC__)
#define CLONES __attribute__((target_clones("avx2", "sse4.1", "default")))
#define HARDWARE_CRC 1
#if __GNUC__ >= 9 || __clang_major__ >= 9
#include <immintrin.h>
#define WIDE_CRC 1
#endif
#else
#define CLONES
#endif

static uint16_t load16(const uint8_t *p) { uint16_t v; memcpy(&v, p, sizeof v); return v; }
static uint32_t load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, sizeof v); return v; }
static uint64_t load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, sizeof v); return v; }

/* ------------------------------------------------------------ page checksums */

#define LANES 32
#define ROW_BYTES (LANES * 4)
#define FNV_PRIME 16777619u
#define PD_CHECKSUM 8
#define PD_UPPER 14

enum { PAGE_GOOD = 0, PAGE_BAD_CHECKSUM = 1, PAGE_NOT_EMPTY = 2 };

static const uint32_t base_offsets[LANES] = {
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
};

typedef uint32_t Lanes __attribute__((vector_size(32)));

#define GROUPS (LANES / 8)
#define MIX(sum, word)                             \
    do {                                           \
        Lanes mixed = (sum) ^ (word);              \
        (sum) = mixed * FNV_PRIME ^ (mixed >> 17); \
    } while (0)

/* The FNV-1a hash of a page with its checksum field taken as zero. */
CLONES static uint32_t page_hash(const uint8_t *page, size_t page_bytes)
{
    const Lanes zero = {0};
    Lanes a, b, c, d, row[GROUPS];
    uint32_t sums[8], result = 0;
    size_t offset;
    int lane;

    memcpy(row, base_offsets, ROW_BYTES);
    a = row[0], b = row[1], c = row[2], d = row[3];
    memcpy(row, page, ROW_BYTES);
    memset((uint8_t *)row + PD_CHECKSUM, 0, 2);
    MIX(a, row[0]);
    MIX(b, row[1]);
    MIX(c, row[2]);
    MIX(d, row[3]);
    for (offset = ROW_BYTES; offset < page_bytes; offset += ROW_BYTES) {
        Lanes e, f, g, h;
        memcpy(&e, page + offset, 32);
        memcpy(&f, page + offset + 32, 32);
        memcpy(&g, page + offset + 64, 32);
        memcpy(&h, page + offset + 96, 32);
        MIX(a, e);
        MIX(b, f);
        MIX(c, g);
        MIX(d, h);
    }
    for (lane = 0; lane < 2; lane++) {
        MIX(a, zero);
        MIX(b, zero);
        MIX(c, zero);
        MIX(d, zero);
    }
    a ^= b ^ c ^ d;
    memcpy(sums, &a, sizeof sums);
    for (lane = 0; lane < 8; lane++)
        result ^= sums[lane];
    return result;
}

static int is_zero(const uint8_t *bytes, size_t length)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

static int page_state(const uint8_t *page, uint32_t block, size_t page_bytes)
{
    if (load16(page + PD_UPPER) == 0)
        return is_zero(page, page_bytes) ? PAGE_GOOD : PAGE_NOT_EMPTY;
    if ((page_hash(page, page_bytes) ^ block) % 65535 + 1 != load16(page + PD_CHECKSUM))
        return PAGE_BAD_CHECKSUM;
    return PAGE_GOOD;
}

static int check_page_size(Py_ssize_t length, unsigned int page_bytes)
{
    if (page_bytes < 1024 || page_bytes > 32768 || (page_bytes & (page_bytes - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "a page has 1024 to 32768 bytes, a power of two");
        return -1;
    }
    if (length % page_bytes != 0) {
        PyErr_SetString(PyExc_ValueError, "the buffer does not hold whole pages");
        return -1;
    }
    return 0;
}

static PyObject *bad_page_list(const uint8_t *states, Py_ssize_t pages)
{
    PyObject *list = PyList_New(0);
    Py_ssize_t i;

    for (i = 0; list != NULL && i < pages; i++) {
        PyObject *item;
        if (states[i] == PAGE_GOOD)
            continue;
        item = Py_BuildValue("(ni)", i, (int)states[i]);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *check_pages(PyObject *module, PyObject *args)
{
    Py_buffer buffer;
    unsigned int first_block, page_bytes;
    Py_ssize_t pages, i, bad = 0;
    uint8_t *states;
    PyObject *result;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*II", &buffer, &first_block, &page_bytes))
        return NULL;
    if (check_page_size(buffer.len, page_bytes) < 0) {
        PyBuffer_Release(&buffer);
        return NULL;
    }
    pages = buffer.len / page_bytes;
    states = malloc(pages > 0 ? (size_t)pages : 1);
    if (states == NULL) {
        PyBuffer_Release(&buffer);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    for (i = 0; i < pages; i++) {
        const uint8_t *page = (const uint8_t *)buffer.buf + (size_t)i * page_bytes;
        states[i] = (uint8_t)page_state(page, first_block + (uint32_t)i, page_bytes);
        bad += states[i] != PAGE_GOOD;
    }
    Py_END_ALLOW_THREADS
    result = bad_page_list(states, bad > 0 ? pages : 0);
    free(states);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *page_checksum(PyObject *module, PyObject *args)
{
    Py_buffer buffer;
    unsigned int block;
    long checksum;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*I", &buffer, &block))
        return NULL;
    if (buffer.len > 32768 || check_page_size(buffer.len, (unsigned int)buffer.len) < 0) {
        PyBuffer_Release(&buffer);
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a page has 1024 to 32768 bytes, a power of two");
        return NULL;
    }
    checksum = (page_hash(buffer.buf, (size_t)buffer.len) ^ block) % 65535 + 1;
    PyBuffer_Release(&buffer);
    return PyLong_FromLong(checksum);
}

/* ------------------------------------------------------------------- CRC-32C */

static uint32_t crc_table[8][256];

static void fill_crc_table(void)
{
    uint32_t i, k;

    for (i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (k = 0; k < 8; k++)
            crc = crc & 1 ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
        crc_table[0][i] = crc;
    }
    for (i = 0; i < 256; i++)
        for (k = 1; k < 8; k++)
            crc_table[k][i] = (crc_table[k - 1][i] >> 8) ^ crc_table[0][crc_table[k - 1][i] & 0xFF];
}

static uint32_t crc_by_table(uint32_t crc, const uint8_t *p, size_t length)
{
    for (; length >= 8; p += 8, length -= 8) {
        crc ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        crc = crc_table[7][crc & 0xFF] ^ crc_table[6][(crc >> 8) & 0xFF] ^
              crc_table[5][(crc >> 16) & 0xFF] ^ crc_table[4][crc >> 24] ^ crc_table[3][p[4]] ^
              crc_table[2][p[5]] ^ crc_table[1][p[6]] ^ crc_table[0][p[7]];
    }
    for (; length > 0; p++, length--)
        crc = (crc >> 8) ^ crc_table[0][(crc ^ *p) & 0xFF];
    return crc;
}

#ifdef HARDWARE_CRC
/* The instruction takes three cycles and may begin every cycle: three neighbouring
 * lanes are computed side by side, and joined by sending each register through the
 * zero bytes of a lane (a table of the operator x**(8 * LANE) modulo the polynomial). */
#define LANE 4096u

static uint32_t lane_table[4][256];

static uint32_t multiply(uint32_t left, uint32_t right)
{
    uint32_t product = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        if (left & bit)
            product ^= right;
        right = right & 1 ? (right >> 1) ^ 0x82F63B78u : right >> 1;
    }
    return product;
}

static void fill_lane_table(void)
{
    uint32_t operator = 0x80000000u, power = 0x80000000u >> 8;
    for (uint32_t length = LANE; length; length >>= 1) {
        if (length & 1)
            operator = multiply(power, operator);
        power = multiply(power, power);
    }
    for (uint32_t k = 0; k < 4; k++)
        for (uint32_t byte = 0; byte < 256; byte++)
            lane_table[k][byte] = multiply(operator, byte << (8 * k));
}

static uint32_t past_lane(uint32_t crc)
{
    return lane_table[0][crc & 0xFF] ^ lane_table[1][(crc >> 8) & 0xFF] ^
           lane_table[2][(crc >> 16) & 0xFF] ^ lane_table[3][crc >> 24];
}

__attribute__((target("sse4.2"))) static uint32_t crc_by_hardware(uint32_t crc, const uint8_t *p,
                                                                  size_t length)
{
    uint64_t wide = crc;
    for (; length >= 3 * LANE; p += 3 * LANE, length -= 3 * LANE) {
        uint64_t second = 0, third = 0;
        for (const uint8_t *at = p; at < p + LANE; at += 8) {
            wide = __builtin_ia32_crc32di(wide, load64(at));
            second = __builtin_ia32_crc32di(second, load64(at + LANE));
            third = __builtin_ia32_crc32di(third, load64(at + 2 * LANE));
        }
        wide = past_lane(past_lane((uint32_t)wide) ^ (uint32_t)second) ^ (uint32_t)third;
    }
    for (; length >= 8; p += 8, length -= 8)
        wide = __builtin_ia32_crc32di(wide, load64(p));
    crc = (uint32_t)wide;
    for (; length; p++, length--)
        crc = __builtin_ia32_crc32qi(crc, *p);
    return crc;
}
#endif

#ifdef WIDE_CRC
/* Carry-less multiplication folds 256 bytes at a time: each 128 bits of what was read so far are
 * multiplied by x**n modulo the polynomial, where n is their distance in bits to the data that
 * they are added to. The 16 bytes that remain have the same CRC, which the instruction gives.
 * The constants are x**(n + 32) and x**(n - 32) modulo 0x1EDC6F41, reflected and shifted by one
 * (Gopal and others, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ"). */
#define WIDE 256u
#define FOLDING __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))

FOLDING static inline __m512i fold(__m512i sum, __m512i by, __m512i data)
{
    __m512i low = _mm512_clmulepi64_epi128(sum, by, 0x00);
    __m512i high = _mm512_clmulepi64_epi128(sum, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, data, 0x96); /* exclusive or of the three */
}

FOLDING static inline __m128i fold_narrow(__m128i sum, __m128i by, __m128i data)
{
    __m128i low = _mm_clmulepi64_si128(sum, by, 0x00);
    __m128i high = _mm_clmulepi64_si128(sum, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), data);
}

FOLDING static uint32_t crc_by_folding(uint32_t crc, const uint8_t *p, size_t length)
{
    const __m512i by_2048 = _mm512_broadcast_i32x4(_mm_set_epi64x(0xb9e02b86, 0xdcb17aa4));
    const __m512i by_512 = _mm512_broadcast_i32x4(_mm_set_epi64x(0x9e4addf8, 0x740eef02));
    const __m128i by_128 = _mm_set_epi64x(0x14cd00bd6, 0xf20c0dfe);
    __m512i sums[4];
    __m128i sum;
    uint64_t wide;

    if (length < 2 * WIDE)
        return crc_by_hardware(crc, p, length);
    for (int i = 0; i < 4; i++)
        sums[i] = _mm512_loadu_si512(p + 64 * i);
    sums[0] = _mm512_xor_si512(sums[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (p += WIDE, length -= WIDE; length >= WIDE; p += WIDE, length -= WIDE)
        for (int i = 0; i < 4; i++)
            sums[i] = fold(sums[i], by_2048, _mm512_loadu_si512(p + 64 * i));
    for (int i = 1; i < 4; i++)
        sums[i] = fold(sums[i - 1], by_512, sums[i]);
    sum = fold_narrow(_mm512_extracti32x4_epi32(sums[3], 0), by_128,
                      _mm512_extracti32x4_epi32(sums[3], 1));
    sum = fold_narrow(sum, by_128, _mm512_extracti32x4_epi32(sums[3], 2));
    sum = fold_narrow(sum, by_128, _mm512_extracti32x4_epi32(sums[3], 3));
    wide = __builtin_ia32_crc32di(0, (uint64_t)_mm_cvtsi128_si64(sum));
    wide = __builtin_ia32_crc32di(wide, (uint64_t)_mm_extract_epi64(sum, 1));
    return crc_by_hardware((uint32_t)wide, p, length);
}
#endif

static uint32_t (*crc_update)(uint32_t, const uint8_t *, size_t) = crc_by_table;

static void choose_crc(void)
{
    fill_crc_table();
#ifdef HARDWARE_CRC
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2")) {
        fill_lane_table();
        crc_update = crc_by_hardware;
    }
#endif
#ifdef WIDE_CRC
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") &&
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq"))
        crc_update = crc_by_folding;
#endif
}

static PyObject *crc32c(PyObject *module, PyObject *args)
{
    Py_buffer buffer;
    unsigned int crc;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*I", &buffer, &crc))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    crc = crc_update(crc ^ 0xFFFFFFFFu, buffer.buf, (size_t)buffer.len) ^ 0xFFFFFFFFu;
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLong(crc);
}

/* ------------------------------------------------------------------ WAL walk */

#define SHORT_HEADER 24u
#define LONG_HEADER 40u
#define FIRST_IS_CONTRECORD 0x0001
#define IS_LONG_HEADER 0x0002
#define FIRST_IS_OVERWRITE 0x0008
#define ALL_FLAGS 0x000F

#define RECORD_HEADER 24u
#define RECORD_CRC 20u
#define MAXIMUM_RECORD (1020u * 1024u * 1024u)

#define RM_XLOG 0
#define RM_XACT 1
#define RM_TABLESPACE 5
#define TABLESPACE_CREATED 0x05 /* no operation of XLOG: their low half is 0 */
#define MAXIMUM_SPECIAL 1040u
#define XLOG_SWITCH 0x40
#define MAGIC_14 0xD10D
#define MAGIC_17 0xD116

#define RM_SMGR 2
#define RM_DBASE 4
#define RM_RELMAP 7
#define RM_HEAP 10
#define HEAP_DELETE 0x10
#define HEAP_TRUNCATE 0x30
#define HEAP_INPLACE 0x70
#define PG_CLASS 1259u
#define PG_DATABASE 1262u
#define PG_NAMESPACE 2615u
#define FIRST_OWN_FILE 16384u /* PostgreSQL's own relations have lower numbers, at first */
#define MAXIMUM_DELETES 65536u
#define KEPT_TELLING 64u

enum { STOP_END = 0, STOP_SWITCH = 1, STOP_INVALID = 2 };
enum { CARRIED_NONE = 0, CARRIED_COMPLETED = 1, CARRIED_DISCARDED = 2, CARRIED_FOREIGN = 3 };
enum { PAGE_INVALID, PAGE_FRESH, PAGE_CONTINUES, PAGE_OVERWRITES };
enum { READ_WHOLE, READ_UNFINISHED, READ_INVALID, READ_OVERWRITTEN, READ_NO_MEMORY };

typedef struct {
    uint64_t lsn, end;
    int64_t time;
    uint32_t xid, is_commit;
} Ended; /* 32 bytes: the layout that wal_scan.py unpacks */

typedef struct {
    uint64_t lsn, end;
    uint32_t info;
    size_t offset, length; /* in Walk.special_bytes */
} Special;

typedef struct {
    uint64_t lsn, end;
    size_t offset, length; /* in Walk.event_bytes */
} Event;

typedef struct {
    uint64_t first_lsn;
    uint32_t xid, top, database, relation, count, outcome;
} Deleted; /* 32 bytes: the layout that wal_events.py unpacks */

typedef struct {
    uint32_t xid, top, outcome, order;
} Outcome;

typedef struct {
    void *items;
    size_t count, capacity;
} Growing;

enum { TELLS_NOTHING, TELLS, TELLS_OF_CATALOGS, TELLS_OF_A_ROW };
enum { STILL_OPEN = 0, COMMITTED = 1, ABORTED = 2 };

typedef struct {
    const uint8_t *data;
    size_t size, pos;
    uint64_t start;
    uint32_t page_bytes, timeline, first_timeline;
    uint16_t magic;
    int want_transactions;

    uint8_t *record; /* bytes of a record that crosses pages */
    size_t record_length, record_capacity;

    int stop, carried_state;
    uint64_t end_lsn, first_lsn, last_lsn, first_previous, previous;
    uint32_t contrecord_bytes;
    uint64_t unfinished_lsn;
    uint32_t unfinished_total, unfinished_have;
    uint64_t records, commits, aborts;
    int64_t commit_times[4], end_times[4];
    uint32_t least_xid, greatest_xid;
    Growing transactions, specials, special_bytes;

    Growing events, event_bytes, deleted, outcomes;
    uint32_t catalog_limit, catalog_events, left_out; /* left_out: 1 catalogs, 2 deletes */
    uint32_t *slots, slot_count;                      /* of deleted, by hash; 0: free */
    size_t last_deleted;
} Walk;

static void *grow(Growing *array, size_t count, size_t item_bytes)
{
    void *place;

    if (array->items == NULL || array->count + count > array->capacity) {
        size_t capacity = (array->count + count) * 2 + 64;
        void *items = realloc(array->items, capacity * item_bytes);
        if (items == NULL)
            return NULL;
        array->items = items;
        array->capacity = capacity;
    }
    place = (uint8_t *)array->items + array->count * item_bytes;
    array->count += count;
    return place;
}

/* Judge the page header at offset; *remaining is what it says is left of a record. */
static int enter_page(Walk *w, size_t offset, uint32_t *remaining)
{
    const uint8_t *p = w->data + offset;
    uint16_t info;
    uint32_t timeline;

    if (w->size - offset < w->page_bytes)
        return PAGE_INVALID;
    info = load16(p + 2);
    timeline = load32(p + 4);
    *remaining = load32(p + 16);
    if (load16(p) != w->magic || (info & ~ALL_FLAGS) != 0 || load64(p + 8) != w->start + offset ||
        timeline < w->timeline || ((info & IS_LONG_HEADER) != 0) != (offset == 0))
        return PAGE_INVALID;
    w->timeline = timeline;
    if (info & FIRST_IS_CONTRECORD)
        return *remaining != 0 ? PAGE_CONTINUES : PAGE_INVALID;
    return info & FIRST_IS_OVERWRITE ? PAGE_OVERWRITES : PAGE_FRESH;
}

static int keep_bytes(Walk *w, const uint8_t *bytes, size_t length)
{
    if (w->record_length + length > w->record_capacity) {
        size_t capacity = (w->record_length + length) * 2;
        uint8_t *record = realloc(w->record, capacity);
        if (record == NULL)
            return -1;
        w->record = record;
        w->record_capacity = capacity;
    }
    if (length > 0)
        memcpy(w->record + w->record_length, bytes, length);
    w->record_length += length;
    return 0;
}

static size_t left_on_page(const Walk *w) { return w->page_bytes - w->pos % w->page_bytes; }

static void align_position(Walk *w) { w->pos = (w->pos + 7) & ~(size_t)7; }

/*
 * Move over need bytes of a record, across pages, and add them to w->record.
 * w->pos is inside of a page, behind its header. On READ_UNFINISHED *need is
 * what lies beyond the segment; on READ_OVERWRITTEN w->pos is the page's start.
 */
static int read_bytes(Walk *w, uint32_t *need)
{
    for (;;) {
        size_t left = left_on_page(w), chunk = *need < left ? *need : left;
        uint32_t remaining;

        if (keep_bytes(w, w->data + w->pos, chunk) < 0)
            return READ_NO_MEMORY;
        w->pos += chunk;
        *need -= (uint32_t)chunk;
        if (*need == 0) {
            align_position(w);
            return READ_WHOLE;
        }
        if (w->pos == w->size)
            return READ_UNFINISHED;
        switch (enter_page(w, w->pos, &remaining)) {
        case PAGE_CONTINUES:
            if (remaining != *need)
                return READ_INVALID;
            break;
        case PAGE_OVERWRITES:
            return READ_OVERWRITTEN;
        default:
            return READ_INVALID;
        }
        w->pos += SHORT_HEADER;
    }
}

static int is_whole_record(const uint8_t *record, uint32_t total)
{
    uint32_t crc = crc_update(0xFFFFFFFFu, record + RECORD_HEADER, total - RECORD_HEADER);

    crc = crc_update(crc, record, RECORD_CRC);
    return (crc ^ 0xFFFFFFFFu) == load32(record + RECORD_CRC);
}

/* The main data of a record without block references; NULL if it has another shape. */
static const uint8_t *main_data(const uint8_t *record, uint32_t total, size_t *length)
{
    size_t at = RECORD_HEADER;

    while (at < total) {
        uint8_t id = record[at++];
        if (id == 255 && total - at >= 1) {
            *length = record[at];
            return *length == total - at - 1 ? record + at + 1 : NULL;
        }
        if (id == 254 && total - at >= 4) {
            *length = load32(record + at);
            return *length == total - at - 4 ? record + at + 4 : NULL;
        }
        if (id == 253)
            at += 2;
        else if (id == 252)
            at += 4;
        else
            return NULL;
    }
    return NULL;
}

/* The xid in the two-phase part of a commit or abort record (xactdesc.c); 0 if unreadable. */
static uint32_t prepared_xid(const Walk *w, const uint8_t *data, size_t length, uint8_t info)
{
    static const uint32_t list_bits[] = {0x02, 0x04, 0x100, 0x08};
    const uint32_t item_bytes[] = {4, 12, w->magic > MAGIC_17 ? 16 : 12, 16};
    uint32_t xinfo;
    size_t at = 12;
    int i;

    if (!(info & 0x80) || length < 12)
        return 0;
    xinfo = load32(data + 8);
    if (xinfo & 0x01)
        at += 8;
    for (i = 0; i < 4; i++) {
        uint64_t bytes;
        if (!(xinfo & list_bits[i]))
            continue;
        if (at > length || length - at < 4)
            return 0;
        bytes = (uint64_t)load32(data + at) * item_bytes[i];
        at += 4;
        if (bytes > length - at)
            return 0;
        at += (size_t)bytes;
    }
    if (!(xinfo & 0x10) || at > length || length - at < 4)
        return 0;
    return load32(data + at);
}

static void note_time(int64_t times[4], int64_t time, int is_first)
{
    if (is_first)
        times[0] = times[2] = times[3] = time;
    times[1] = time;
    if (time < times[2])
        times[2] = time;
    if (time > times[3])
        times[3] = time;
}

/* ------------------------------------------------- what WAL tells of tables */

typedef struct {
    uint32_t space, database, relation;
} Place;

/* Which relation's main fork the first block reference is of. 1: it is in *place, 0: there is
 * none, -1: it lies beyond the length bytes that are there. */
static int first_place(const uint8_t *record, size_t length, uint16_t magic, Place *place)
{
    size_t at = RECORD_HEADER + 4;

    if (length < at)
        return -1;
    if (record[RECORD_HEADER] != 0 || (record[RECORD_HEADER + 1] & 0x8F) != 0)
        return 0;
    if (record[RECORD_HEADER + 1] & 0x10) {
        uint8_t image;
        if (length < at + 5)
            return -1;
        image = record[at + 4];
        at += 5;
        if ((image & 0x01) && (image & (magic > MAGIC_14 ? 0x1C : 0x02)))
            at += 2;
    }
    if (length < at + 12)
        return -1;
    place->space = load32(record + at);
    place->database = load32(record + at + 4);
    place->relation = load32(record + at + 8);
    return 1;
}

/* What kind of knowledge is in this record, of which length bytes are there; when too few are to
 * tell, more than nothing. *place is that of a row that was deleted. */
static int tells(const Walk *w, const uint8_t *record, size_t length, Place *place)
{
    uint8_t operation, manager;
    int found;

    if (length < RECORD_HEADER)
        return TELLS;
    manager = record[17];
    operation = record[16] & 0xF0;
    if (manager == RM_SMGR)
        return operation == 0x20 ? TELLS_OF_CATALOGS : TELLS_NOTHING;
    if (manager == RM_DBASE)
        return operation == (w->magic > MAGIC_14 ? 0x20 : 0x10) ? TELLS : TELLS_NOTHING;
    if (manager == RM_RELMAP)
        return operation == 0x00 ? TELLS : TELLS_NOTHING;
    if (manager != RM_HEAP)
        return TELLS_NOTHING;
    operation &= 0x70;
    if (operation == HEAP_TRUNCATE)
        return TELLS;
    found = first_place(record, length, w->magic, place);
    if (found <= 0)
        return found < 0 ? TELLS : TELLS_NOTHING;
    if (operation == HEAP_DELETE && place->relation >= FIRST_OWN_FILE)
        return TELLS_OF_A_ROW;
    if (place->relation == PG_DATABASE)
        return operation <= 0x40 || operation == HEAP_INPLACE ? TELLS_OF_CATALOGS : TELLS_NOTHING;
    if (place->relation == PG_CLASS || place->relation == PG_NAMESPACE)
        return operation <= 0x40 ? TELLS_OF_CATALOGS : TELLS_NOTHING;
    return TELLS_NOTHING;
}

/* Keep a whole record for Python, unless there are too many of what is less important. */
static int note_event(Walk *w, const uint8_t *record, uint32_t total, uint64_t lsn, int kind)
{
    Event *event;
    uint8_t *bytes;

    if (kind == TELLS_OF_CATALOGS && w->catalog_events++ >= w->catalog_limit) {
        w->left_out |= 1;
        return 0;
    }
    event = grow(&w->events, 1, sizeof *event);
    if (event == NULL)
        return -1;
    event->lsn = lsn;
    event->end = w->start + w->pos;
    event->offset = w->event_bytes.count;
    event->length = total;
    bytes = grow(&w->event_bytes, total, 1);
    if (bytes == NULL)
        return -1;
    memcpy(bytes, record, total);
    return 0;
}

static uint32_t slot_of(const Walk *w, const Deleted *row)
{
    uint64_t hash = ((uint64_t)row->xid << 32 | row->relation) ^ (uint64_t)row->database << 13;

    return (uint32_t)((hash * 0x9E3779B97F4A7C15u) >> 32) & (w->slot_count - 1);
}

static int is_same(const Deleted *a, const Deleted *b)
{
    return a->xid == b->xid && a->relation == b->relation && a->database == b->database;
}

static int more_slots(Walk *w)
{
    uint32_t count = w->slot_count ? w->slot_count * 2 : 512, *slots = calloc(count, sizeof *slots);
    const Deleted *rows = w->deleted.items;
    size_t i;

    if (slots == NULL)
        return -1;
    free(w->slots);
    w->slots = slots;
    w->slot_count = count;
    for (i = 0; i < w->deleted.count; i++) {
        uint32_t slot = slot_of(w, &rows[i]);
        while (slots[slot] != 0)
            slot = (slot + 1) & (count - 1);
        slots[slot] = (uint32_t)i + 1;
    }
    return 0;
}

static int count_deleted(Walk *w, uint32_t xid, const Place *place, uint64_t lsn)
{
    Deleted row = {lsn, xid, xid, place->database, place->relation, 1, STILL_OPEN}, *rows, *free_row;
    uint32_t slot;

    rows = w->deleted.items;
    if (w->deleted.count > 0 && is_same(&rows[w->last_deleted], &row)) {
        rows[w->last_deleted].count++;
        return 0;
    }
    if (w->deleted.count * 2 >= w->slot_count && more_slots(w) < 0)
        return -1;
    for (slot = slot_of(w, &row); w->slots[slot] != 0; slot = (slot + 1) & (w->slot_count - 1)) {
        size_t i = w->slots[slot] - 1;
        if (!is_same(&rows[i], &row))
            continue;
        rows[i].count++;
        w->last_deleted = i;
        return 0;
    }
    if (w->deleted.count >= MAXIMUM_DELETES) {
        w->left_out |= 2;
        return 0;
    }
    free_row = grow(&w->deleted, 1, sizeof row);
    if (free_row == NULL)
        return -1;
    *free_row = row;
    w->last_deleted = w->deleted.count - 1;
    w->slots[slot] = (uint32_t)w->deleted.count;
    return 0;
}

static int add_outcome(Walk *w, uint32_t xid, uint32_t top, int is_commit)
{
    Outcome *outcome = grow(&w->outcomes, 1, sizeof *outcome);

    if (outcome == NULL)
        return -1;
    outcome->xid = xid;
    outcome->top = top;
    outcome->outcome = is_commit ? COMMITTED : ABORTED;
    outcome->order = (uint32_t)w->outcomes.count;
    return 0;
}

/* A transaction that may have deleted rows ends, and its subtransactions with it. */
static int note_outcome(Walk *w, const uint8_t *data, size_t length, uint32_t xid, int info)
{
    int is_commit = (info & 0x70) == 0x00 || (info & 0x70) == 0x30;
    uint32_t xinfo, count, i;
    size_t at = 12;

    if (add_outcome(w, xid, xid, is_commit) < 0)
        return -1;
    if (!(info & 0x80) || length < 12)
        return 0;
    xinfo = load32(data + 8);
    if (xinfo & 0x01)
        at += 8;
    if (!(xinfo & 0x02) || length < at + 4)
        return 0;
    count = load32(data + at);
    at += 4;
    if (count > (length - at) / 4)
        return 0;
    for (i = 0; i < count; i++)
        if (add_outcome(w, load32(data + at + 4 * (size_t)i), xid, is_commit) < 0)
            return -1;
    return 0;
}

static int compare_numbers(uint32_t a, uint32_t b) { return (a > b) - (a < b); }

static int compare_outcomes(const void *left, const void *right)
{
    const Outcome *a = left, *b = right;
    int by_xid = compare_numbers(a->xid, b->xid);

    return by_xid ? by_xid : compare_numbers(a->order, b->order);
}

static int compare_deleted(const void *left, const void *right)
{
    const Deleted *a = left, *b = right;
    int by_xid = compare_numbers(a->xid, b->xid);
    int by_database = compare_numbers(a->database, b->database);

    return by_xid ? by_xid : by_database ? by_database : compare_numbers(a->relation, b->relation);
}

/* Say of each count of deleted rows what became of its transaction, as far as WAL went. */
static void settle_deleted(Walk *w)
{
    Deleted *rows = w->deleted.items;
    const Outcome *outcomes = w->outcomes.items;
    size_t i, at = 0;

    if (w->deleted.count == 0)
        return;
    qsort(rows, w->deleted.count, sizeof *rows, compare_deleted);
    if (w->outcomes.count == 0)
        return;
    qsort(w->outcomes.items, w->outcomes.count, sizeof *outcomes, compare_outcomes);
    for (i = 0; i < w->deleted.count; i++) {
        while (at < w->outcomes.count && outcomes[at].xid < rows[i].xid)
            at++;
        if (at == w->outcomes.count)
            return;
        if (outcomes[at].xid == rows[i].xid) {
            rows[i].top = outcomes[at].top;
            rows[i].outcome = outcomes[at].outcome;
        }
    }
}

/* A commit tells when it unlinks relations, or changed a catalog (it carries invalidations). */
static int commit_tells(const uint8_t *data, size_t length, uint8_t info)
{
    uint8_t operation = info & 0x70;
    uint32_t xinfo;

    if ((operation != 0x00 && operation != 0x30) || !(info & 0x80) || length < 12)
        return TELLS_NOTHING;
    xinfo = load32(data + 8);
    return xinfo & 0x04 ? TELLS : xinfo & 0x08 ? TELLS_OF_CATALOGS : TELLS_NOTHING;
}

static int note_transaction(Walk *w, const uint8_t *record, uint32_t total, uint64_t lsn)
{
    uint8_t info = record[16], operation = info & 0x70;
    int is_commit = operation == 0x00 || operation == 0x30;
    int is_prepared = operation == 0x30 || operation == 0x40, telling;
    size_t length;
    const uint8_t *data;
    uint32_t xid;
    int64_t time;

    if (!is_commit && operation != 0x20 && operation != 0x40)
        return 0;
    data = main_data(record, total, &length);
    if (data == NULL || length < 8)
        return 0;
    time = (int64_t)load64(data);
    xid = is_prepared ? prepared_xid(w, data, length, info) : load32(record + 4);
    note_time(w->end_times, time, w->commits + w->aborts == 0);
    if (is_commit)
        note_time(w->commit_times, time, w->commits == 0);
    if (xid != 0 && (w->least_xid == 0 || xid < w->least_xid))
        w->least_xid = xid;
    if (xid > w->greatest_xid)
        w->greatest_xid = xid;
    w->commits += (uint64_t)is_commit;
    w->aborts += (uint64_t)!is_commit;
    if (w->want_transactions) {
        Ended *ended = grow(&w->transactions, 1, sizeof *ended);
        if (ended == NULL)
            return -1;
        ended->lsn = lsn;
        ended->end = w->start + w->pos;
        ended->time = time;
        ended->xid = xid;
        ended->is_commit = (uint32_t)is_commit;
    }
    if (w->deleted.count > 0 && note_outcome(w, data, length, xid, info) < 0)
        return -1;
    telling = commit_tells(data, length, info);
    return telling != TELLS_NOTHING ? note_event(w, record, total, lsn, telling) : 0;
}

static int is_special(uint8_t operation)
{
    return operation == 0x00 || operation == 0x10 || operation == 0x60 || operation == 0x70 ||
           operation == 0x90;
}

static int is_tablespace(const uint8_t *record)
{
    return record[17] == RM_TABLESPACE && (record[16] & 0xF0) == 0x00;
}

/* Checkpoints, parameter changes, restore points, ends of recovery and new tablespaces go to
 * Python as bytes. */
static int note_special(Walk *w, const uint8_t *record, uint32_t total, uint64_t lsn)
{
    uint8_t operation = is_tablespace(record) ? TABLESPACE_CREATED : record[16] & 0xF0;
    size_t length;
    const uint8_t *data;
    Special *special;
    uint8_t *bytes;

    if (operation != TABLESPACE_CREATED && !is_special(operation))
        return 0;
    data = main_data(record, total, &length);
    if (data == NULL)
        return 0;
    if (length > MAXIMUM_SPECIAL)
        length = MAXIMUM_SPECIAL;
    special = grow(&w->specials, 1, sizeof *special);
    if (special == NULL)
        return -1;
    special->lsn = lsn;
    special->end = w->start + w->pos;
    special->info = operation;
    special->offset = w->special_bytes.count;
    special->length = length;
    bytes = grow(&w->special_bytes, length, 1);
    if (bytes == NULL)
        return -1;
    memcpy(bytes, data, length);
    return 0;
}

/* Take a whole, valid record; w->pos is behind it. 1: it was a switch; -1: no memory. */
static int take_record(Walk *w, const uint8_t *record, uint32_t total, uint64_t lsn)
{
    uint8_t manager = record[17];
    Place place;
    int telling;

    w->end_lsn = w->start + w->pos;
    w->previous = lsn;
    if (lsn >= w->start) {
        if (w->first_lsn == 0) {
            w->first_lsn = lsn;
            w->first_previous = load64(record + 8);
        }
        w->last_lsn = lsn;
        w->records++;
    }
    if (manager == RM_XACT)
        return note_transaction(w, record, total, lsn);
    if (is_tablespace(record))
        return note_special(w, record, total, lsn);
    if (manager != RM_XLOG) {
        telling = tells(w, record, total, &place);
        if (telling == TELLS_NOTHING)
            return 0;
        return telling == TELLS_OF_A_ROW ? count_deleted(w, load32(record + 4), &place, lsn)
                                         : note_event(w, record, total, lsn, telling);
    }
    if ((record[16] & 0xF0) == XLOG_SWITCH)
        return 1;
    return note_special(w, record, total, lsn);
}

/* May this record, of which only the beginning is there, matter to a recovery target? */
static int may_matter(const uint8_t *record, size_t length)
{
    uint8_t operation;

    if (length < RECORD_HEADER)
        return 1;
    operation = record[16] & 0x70;
    if (record[17] == RM_XACT)
        return operation == 0x00 || operation == 0x20 || operation == 0x30 || operation == 0x40;
    return is_tablespace(record) || (record[17] == RM_XLOG && is_special(record[16] & 0xF0));
}

/* A walk that is only for the index keeps no more of a record than the index may need. */
static void keep_unfinished(Walk *w, uint64_t lsn, uint32_t total, uint32_t have)
{
    Place place;
    size_t kept;
    int telling;

    w->unfinished_lsn = lsn;
    w->unfinished_total = total;
    w->unfinished_have = have;
    if (may_matter(w->record, w->record_length))
        return;
    telling = tells(w, w->record, w->record_length, &place);
    if (telling != TELLS_NOTHING && w->want_transactions)
        return;
    kept = telling != TELLS_NOTHING ? KEPT_TELLING : RECORD_HEADER;
    if (w->record_length > kept)
        w->record_length = kept;
}

/* What the segment begins with when a record crosses its start. 0: go on, else stop or error. */
static int walk_contrecord(Walk *w, uint64_t lsn, uint32_t total, uint32_t have, size_t head)
{
    uint32_t need = w->contrecord_bytes;
    int known = lsn != 0 && total >= RECORD_HEADER && (uint64_t)have + need == total && head <= have;
    int outcome;

    if (lsn != 0 && !known)
        w->carried_state = CARRIED_FOREIGN;
    if (!known)
        w->record_length = 0;
    outcome = read_bytes(w, &need);
    if (outcome == READ_NO_MEMORY)
        return -1;
    if (outcome == READ_INVALID) {
        w->stop = STOP_INVALID;
        return 1;
    }
    if (outcome == READ_OVERWRITTEN) {
        w->carried_state = known ? CARRIED_DISCARDED : w->carried_state;
        return 0;
    }
    if (outcome == READ_UNFINISHED) {
        w->stop = STOP_END;
        if (known) {
            if (head < have)
                w->record_length = head;
            keep_unfinished(w, lsn, total, total - need);
        }
        return 1;
    }
    w->end_lsn = w->start + w->pos;
    if (!known)
        return 0;
    w->carried_state = CARRIED_COMPLETED;
    w->previous = lsn;
    if (head < have)
        return 0;
    if (!is_whole_record(w->record, total)) {
        w->carried_state = CARRIED_FOREIGN;
        w->previous = 0;
        return 0;
    }
    return take_record(w, w->record, total, lsn) < 0 ? -1 : 0;
}

static int has_plausible_header(const Walk *w, const uint8_t *header, uint64_t lsn)
{
    uint64_t previous = load64(header + 8);

    return w->previous != 0 ? previous == w->previous : previous < lsn;
}

/* One record at w->pos (aligned, behind a page header). 0: go on, 1: stop, -1: no memory. */
static int walk_record(Walk *w)
{
    uint64_t lsn = w->start + w->pos;
    uint32_t total = load32(w->data + w->pos), need = total;
    const uint8_t *record = w->data + w->pos;
    int outcome = READ_WHOLE, taken;

    w->stop = STOP_INVALID;
    if (total < RECORD_HEADER || total > MAXIMUM_RECORD)
        return 1;
    if (left_on_page(w) >= RECORD_HEADER && !has_plausible_header(w, record, lsn))
        return 1;
    if (total <= left_on_page(w)) {
        w->pos += total;
        align_position(w);
    } else {
        w->record_length = 0;
        outcome = read_bytes(w, &need);
        record = w->record;
    }
    switch (outcome) {
    case READ_NO_MEMORY:
        return -1;
    case READ_INVALID:
        return 1;
    case READ_OVERWRITTEN:
        return 0;
    case READ_UNFINISHED:
        if (w->record_length >= RECORD_HEADER && !has_plausible_header(w, record, lsn))
            return 1;
        keep_unfinished(w, lsn, total, total - need);
        w->stop = STOP_END;
        return 1;
    default:
        break;
    }
    if (!has_plausible_header(w, record, lsn) || !is_whole_record(record, total))
        return 1;
    taken = take_record(w, record, total, lsn);
    if (taken == 1)
        w->stop = STOP_SWITCH;
    return taken;
}

static int walk_records(Walk *w)
{
    for (;;) {
        int outcome;

        if (w->pos == w->size) {
            w->stop = STOP_END;
            return 0;
        }
        if (w->pos % w->page_bytes == 0) {
            uint32_t remaining;
            int page = enter_page(w, w->pos, &remaining);
            if (page == PAGE_INVALID || page == PAGE_CONTINUES) {
                w->stop = STOP_INVALID;
                return 0;
            }
            w->pos += SHORT_HEADER;
        }
        outcome = walk_record(w);
        if (outcome != 0)
            return outcome < 0 ? -1 : 0;
    }
}

/* 0, or -1 without memory. The carried record's bytes are in w->record. */
static int walk_segment(Walk *w, uint64_t lsn, uint32_t total, uint32_t have)
{
    uint32_t remaining;
    int page, outcome;

    w->stop = STOP_INVALID;
    w->end_lsn = w->start;
    if (w->size < w->page_bytes)
        return 0;
    w->magic = load16(w->data);
    w->timeline = load32(w->data + 4);
    page = enter_page(w, 0, &remaining);
    if (page == PAGE_INVALID)
        return 0;
    w->first_timeline = w->timeline;
    w->pos = LONG_HEADER;
    if (page == PAGE_CONTINUES) {
        w->contrecord_bytes = remaining;
        outcome = walk_contrecord(w, lsn, total, have, w->record_length);
        if (outcome != 0)
            return outcome < 0 ? -1 : 0;
    } else if (lsn != 0) {
        w->carried_state = CARRIED_DISCARDED;
    }
    return walk_records(w);
}

static PyObject *special_list(const Walk *w)
{
    PyObject *list = PyList_New((Py_ssize_t)w->specials.count);
    const Special *specials = w->specials.items;
    const char *bytes = w->special_bytes.items;
    size_t i;

    for (i = 0; list != NULL && i < w->specials.count; i++) {
        PyObject *item = Py_BuildValue(
            "(KKIy#)", (unsigned long long)specials[i].lsn, (unsigned long long)specials[i].end,
            specials[i].info, specials[i].length > 0 ? bytes + specials[i].offset : "",
            (Py_ssize_t)specials[i].length);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *event_list(const Walk *w)
{
    PyObject *list = PyList_New((Py_ssize_t)w->events.count);
    const Event *events = w->events.items;
    const char *bytes = w->event_bytes.items;
    size_t i;

    for (i = 0; list != NULL && i < w->events.count; i++) {
        PyObject *item = Py_BuildValue("(KKy#)", (unsigned long long)events[i].lsn,
                                       (unsigned long long)events[i].end, bytes + events[i].offset,
                                       (Py_ssize_t)events[i].length);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *times_tuple(const int64_t times[4])
{
    return Py_BuildValue("(LLLL)", (long long)times[0], (long long)times[1], (long long)times[2],
                         (long long)times[3]);
}

static PyObject *result_tuple(const Walk *w)
{
    const char *transactions = w->transactions.count > 0 ? w->transactions.items : "";
    const char *deleted = w->deleted.count > 0 ? w->deleted.items : "";
    const char *unfinished = w->unfinished_lsn != 0 ? (const char *)w->record : "";
    Py_ssize_t unfinished_length = w->unfinished_lsn != 0 ? (Py_ssize_t)w->record_length : 0;

    return Py_BuildValue(
        "(i(II)(KKKK)I(KIIy#)i(KKK)NN(II)Ny#Ny#I)", w->stop, w->first_timeline, w->timeline,
        (unsigned long long)w->end_lsn, (unsigned long long)w->first_lsn,
        (unsigned long long)w->last_lsn, (unsigned long long)w->first_previous,
        w->contrecord_bytes, (unsigned long long)w->unfinished_lsn, w->unfinished_total,
        w->unfinished_have, unfinished, unfinished_length, w->carried_state,
        (unsigned long long)w->records, (unsigned long long)w->commits,
        (unsigned long long)w->aborts, times_tuple(w->commit_times), times_tuple(w->end_times),
        w->least_xid, w->greatest_xid, special_list(w), transactions,
        (Py_ssize_t)(w->transactions.count * sizeof(Ended)), event_list(w), deleted,
        (Py_ssize_t)(w->deleted.count * sizeof(Deleted)), w->left_out);
}

/* scan_wal(data, start, page_bytes, want_transactions, (lsn, total, have, head), catalog_limit) */
static PyObject *scan_wal(PyObject *module, PyObject *args)
{
    Py_buffer buffer, head;
    unsigned long long start, lsn;
    unsigned int page_bytes, total, have;
    int want_transactions, outcome;
    Walk walk;
    PyObject *result;
    unsigned int catalog_limit;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*KIp(KIIy*)I", &buffer, &start, &page_bytes, &want_transactions,
                          &lsn, &total, &have, &head, &catalog_limit))
        return NULL;
    memset(&walk, 0, sizeof walk);
    walk.catalog_limit = catalog_limit;
    walk.data = buffer.buf;
    walk.size = (size_t)buffer.len;
    walk.start = start;
    walk.page_bytes = page_bytes;
    walk.want_transactions = want_transactions;
    if (page_bytes < 512 || page_bytes > 65536 || (page_bytes & (page_bytes - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "a WAL page has 512 to 65536 bytes, a power of two");
        result = NULL;
    } else {
        Py_BEGIN_ALLOW_THREADS
        outcome = keep_bytes(&walk, head.buf, (size_t)head.len);
        if (outcome == 0)
            outcome = walk_segment(&walk, lsn, total, have);
        settle_deleted(&walk);
        Py_END_ALLOW_THREADS
        result = outcome < 0 ? PyErr_NoMemory() : result_tuple(&walk);
    }
    free(walk.record);
    free(walk.transactions.items);
    free(walk.specials.items);
    free(walk.special_bytes.items);
    free(walk.events.items);
    free(walk.event_bytes.items);
    free(walk.deleted.items);
    free(walk.outcomes.items);
    free(walk.slots);
    PyBuffer_Release(&buffer);
    PyBuffer_Release(&head);
    return result;
}

/* ------------------------------------------------------------------- writing */

enum { PIECE_NUMBERS = 4 };

static PyObject *write_pieces(PyObject *module, PyObject *args)
{
    Py_buffer data, pieces;
    int descriptor;
    Py_ssize_t most;
    (void)module;
    if (!PyArg_ParseTuple(args, "iy*y*n", &descriptor, &data, &pieces, &most))
        return NULL;
    const Py_ssize_t count = pieces.len / (Py_ssize_t)(PIECE_NUMBERS * sizeof(int64_t));
    long long written = 0;
    int number = 0, leads_out = 0;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count && !number && !leads_out; i++) {
        int64_t piece[PIECE_NUMBERS];
        memcpy(piece, (const char *)pieces.buf + i * (Py_ssize_t)sizeof piece, sizeof piece);
        int64_t offset = piece[1], start = piece[2], length = piece[3];
        if (offset < 0 || start < 0 || length < 0 || start > data.len || length > data.len - start) {
            leads_out = 1;
            break;
        }
        while (length > 0) {
            const size_t wanted = (size_t)(length < most ? length : most);
            const ssize_t done = pwrite(descriptor, (const char *)data.buf + start, wanted, offset);
            if (done < 0 && errno == EINTR)
                continue;
            if (done <= 0) {
                number = done < 0 ? errno : EIO;
                break;
            }
            offset += done;
            start += done;
            length -= done;
            written += done;
        }
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    PyBuffer_Release(&pieces);
    if (leads_out) {
        PyErr_SetString(PyExc_ValueError, "a piece leads out of the data");
        return NULL;
    }
    if (number) {
        errno = number;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLongLong(written);
}

/* --------------------------------------------------------------- directories */

enum { LONGEST_PART = 255, FIRST_ENTRIES = 512 };

typedef struct {
    size_t name; /* where it begins among the names */
    int64_t size; /* -1: a directory */
    double modified;
} entry;

typedef struct {
    entry *entries;
    size_t count, room;
    char *names; /* each with its zero byte */
    size_t used, space;
    char failed[LONGEST_PART + 1]; /* what could not be looked at */
} listing;

/* As store/keys.py has it. */
static int is_key_part(const char *name, size_t length)
{
    if (!length || length > LONGEST_PART || name[0] == '.')
        return 0;
    for (size_t i = 0; i < length; i++) {
        const char c = name[i];
        const int is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!is_plain && !strchr("-_.=%+~", c))
            return 0;
    }
    return 1;
}

static int keep_entry(listing *found, const char *name, size_t length, const struct stat *about)
{
    if (found->count == found->room) {
        const size_t room = found->room ? found->room * 2 : FIRST_ENTRIES;
        entry *larger = realloc(found->entries, room * sizeof *larger);
        if (!larger)
            return ENOMEM;
        found->entries = larger;
        found->room = room;
    }
    if (found->used + length + 2 > found->space) {
        const size_t space = found->space * 2 + LONGEST_PART + 2;
        char *larger = realloc(found->names, space);
        if (!larger)
            return ENOMEM;
        found->names = larger;
        found->space = space;
    }
    entry *one = &found->entries[found->count++];
    one->name = found->used;
    one->size = about ? (int64_t)about->st_size : -1;
    one->modified = about ? (double)about->st_mtim.tv_sec + 1e-9 * (double)about->st_mtim.tv_nsec : 0;
    memcpy(found->names + found->used, name, length);
    found->used += length;
    if (!about)
        found->names[found->used++] = '/';
    found->names[found->used++] = 0;
    return 0;
}

/* 0, or the number of the error. */
static int look_at(listing *found, int directory, const struct dirent *told)
{
    const size_t length = strlen(told->d_name);
    if (told->d_type == DT_DIR)
        return keep_entry(found, told->d_name, length, NULL);
    struct stat about;
    if (fstatat(directory, told->d_name, &about, 0)) {
        if (errno == ENOENT)
            return 0; /* deleted since the directory was read */
        memcpy(found->failed, told->d_name, length + 1);
        return errno;
    }
    if (S_ISDIR(about.st_mode))
        return keep_entry(found, told->d_name, length, NULL);
    return S_ISREG(about.st_mode) ? keep_entry(found, told->d_name, length, &about) : 0;
}

static int read_entries(listing *found, int descriptor, const char *beginning)
{
    /* An own description: the position in the caller's stays. */
    const int own = openat(descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (own < 0)
        return errno;
    DIR *directory = fdopendir(own);
    if (!directory) {
        const int number = errno;
        close(own);
        return number;
    }
    const size_t start = strlen(beginning);
    int number = 0;
    while (!number) {
        errno = 0;
        const struct dirent *told = readdir(directory);
        if (!told) {
            number = errno;
            break;
        }
        if (is_key_part(told->d_name, strlen(told->d_name)) && !strncmp(told->d_name, beginning, start))
            number = look_at(found, own, told);
    }
    closedir(directory);
    return number;
}

static PyObject *list_directory(PyObject *module, PyObject *args)
{
    int descriptor;
    const char *beginning;
    (void)module;
    if (!PyArg_ParseTuple(args, "is", &descriptor, &beginning))
        return NULL;
    listing found = {0};
    int number;
    Py_BEGIN_ALLOW_THREADS
    number = read_entries(&found, descriptor, beginning);
    Py_END_ALLOW_THREADS
    PyObject *rows = NULL;
    if (number) {
        errno = number;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, found.failed[0] ? found.failed : NULL);
    } else {
        rows = PyList_New((Py_ssize_t)found.count);
    }
    for (size_t i = 0; rows && i < found.count; i++) {
        const entry *one = &found.entries[i];
        PyObject *row =
            Py_BuildValue("sLd", found.names + one->name, (long long)one->size, one->modified);
        if (!row || PyList_SetItem(rows, (Py_ssize_t)i, row))
            Py_CLEAR(rows);
    }
    free(found.entries);
    free(found.names);
    return rows;
}

/* -------------------------------------------------------------------- module */

static PyMethodDef methods[] = {
    {"check_pages", check_pages, METH_VARARGS,
     "check_pages(buffer, first_block, page_bytes) -> list of (index, kind)"},
    {"page_checksum", page_checksum, METH_VARARGS, "page_checksum(page, block) -> int"},
    {"crc32c", crc32c, METH_VARARGS, "crc32c(data, crc) -> int, going on from crc"},
    {"scan_wal", scan_wal, METH_VARARGS,
     "scan_wal(data, start, page_bytes, want_transactions, carried, catalog_limit) -> tuple"},
    {"write_pieces", write_pieces, METH_VARARGS,
     "write_pieces(descriptor, data, pieces, most) -> int, bytes written; pieces: records of\n"
     "four 64-bit numbers: (ignored), offset in the file, start and length within data; at\n"
     "most so many bytes with one call"},
    {"list_directory", list_directory, METH_VARARGS,
     "list_directory(descriptor, beginning) -> list of (name, size, modified), unsorted: what can\n"
     "be part of a key and begins like this; directories with a slash, and -1 for their size"},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    (void)module;
    choose_crc();
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "Page checksums, the walk over WAL records, many pieces written, many files listed.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
