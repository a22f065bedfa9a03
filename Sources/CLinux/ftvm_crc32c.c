#include "CLinux.h"

#include <string.h>

/* x^32 + x^28 + x^27 + ... (0x1EDC6F41), bits reflected. */
#define POLYNOMIAL 0x82F63B78u

/* slices[k][b]: the register after byte b followed by k zero bytes. */
static uint32_t slices[8][256];

static void build_slices(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++) value = (value >> 1) ^ (value & 1 ? POLYNOMIAL : 0);
        slices[0][byte] = value;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t byte = 0; byte < 256; byte++)
            slices[k][byte] = (slices[k - 1][byte] >> 8) ^ slices[0][slices[k - 1][byte] & 0xff];
}

static uint64_t load_word(const uint8_t *bytes) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

/* The register's way over `count` bytes, without the inversions before and after. */
static uint32_t portable_register(uint32_t value, const uint8_t *bytes, size_t count) {
    for (; count >= 8; bytes += 8, count -= 8) {
        uint64_t word = load_word(bytes) ^ value;
        value = slices[7][word & 0xff] ^ slices[6][(word >> 8) & 0xff] ^
                slices[5][(word >> 16) & 0xff] ^ slices[4][(word >> 24) & 0xff] ^
                slices[3][(word >> 32) & 0xff] ^ slices[2][(word >> 40) & 0xff] ^
                slices[1][(word >> 48) & 0xff] ^ slices[0][word >> 56];
    }
    for (; count > 0; bytes++, count--) value = (value >> 8) ^ slices[0][(value ^ *bytes) & 0xff];
    return value;
}

uint32_t ftvm_crc32c_portable(uint32_t crc, const void *bytes, size_t count) {
    return ~portable_register(~crc, bytes, count);
}

#if defined(__x86_64__)
#include <nmmintrin.h>

/* The instruction takes 3 cycles but one can start in every cycle: three lanes side by side, joined
 * at the end by "shifting" a lane's register over the bytes of the lanes behind it, which is a linear
 * function of 32 bits, here as four tables of bytes. 3 * 1360 + 16 = 4096. */
#define LANE_BYTES 1360
#define LANE_WORDS (LANE_BYTES / 8)

static bool accelerated;
static uint32_t over_one_lane[4][256];
static uint32_t over_two_lanes[4][256];

__attribute__((target("sse4.2"))) static void build_shift(uint32_t table[4][256], size_t words) {
    for (int position = 0; position < 4; position++) {
        table[position][0] = 0;
        for (int bit = 0; bit < 8; bit++) {
            uint64_t value = (uint64_t)1 << (8 * position + bit);
            for (size_t i = 0; i < words; i++) value = _mm_crc32_u64(value, 0);
            for (uint32_t low = 0; low < (1u << bit); low++)
                table[position][(1u << bit) + low] = (uint32_t)value ^ table[position][low];
        }
    }
}

static uint32_t shift(uint32_t table[4][256], uint32_t value) {
    return table[0][value & 0xff] ^ table[1][(value >> 8) & 0xff] ^
           table[2][(value >> 16) & 0xff] ^ table[3][value >> 24];
}

__attribute__((target("sse4.2"))) static uint32_t
accelerated_register(uint32_t start, const uint8_t *bytes, size_t count) {
    uint64_t value = start;
    for (; count >= 3 * LANE_BYTES; bytes += 3 * LANE_BYTES, count -= 3 * LANE_BYTES) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < LANE_WORDS; i++) {
            value = _mm_crc32_u64(value, load_word(bytes + 8 * i));
            second = _mm_crc32_u64(second, load_word(bytes + LANE_BYTES + 8 * i));
            third = _mm_crc32_u64(third, load_word(bytes + 2 * LANE_BYTES + 8 * i));
        }
        value = shift(over_two_lanes, (uint32_t)value) ^ shift(over_one_lane, (uint32_t)second) ^ third;
    }
    for (; count >= 8; bytes += 8, count -= 8) value = _mm_crc32_u64(value, load_word(bytes));
    for (; count > 0; bytes++, count--) value = _mm_crc32_u8((uint32_t)value, *bytes);
    return (uint32_t)value;
}
#endif

__attribute__((constructor)) static void prepare(void) {
    build_slices();
#if defined(__x86_64__)
    __builtin_cpu_init();
    accelerated = __builtin_cpu_supports("sse4.2");
    if (accelerated) {
        build_shift(over_one_lane, LANE_WORDS);
        build_shift(over_two_lanes, 2 * LANE_WORDS);
    }
#endif
}

bool ftvm_crc32c_accelerated(void) {
#if defined(__x86_64__)
    return accelerated;
#else
    return false;
#endif
}

uint32_t ftvm_crc32c(uint32_t crc, const void *bytes, size_t count) {
#if defined(__x86_64__)
    if (accelerated) return ~accelerated_register(~crc, bytes, count);
#endif
    return ftvm_crc32c_portable(crc, bytes, count);
}

/* Copying first and then reading the copy out of the nearest cache measured faster than one loop that
 * does both (1.1 us against 1.2 us a page from cold memory, 0.2 us against 0.34 us from a warm cache). */
uint32_t ftvm_crc32c_copy(void *target, const void *source, size_t count) {
    memcpy(target, source, count);
    return ftvm_crc32c(0, target, count);
}
