#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4). `crc` is 0 to begin with, or the value of the bytes
 * before these. Uses the SSE4.2 instruction where the processor has it. */
uint32_t ftvm_crc32c(uint32_t crc, const void *bytes, size_t count);

/* Copies `count` bytes (not overlapping) and returns the CRC-32C of
 * exactly the bytes that were stored, also when the source changes meanwhile. */
uint32_t ftvm_crc32c_copy(void *target, const void *source, size_t count);

/* The table-driven way, whatever the processor has; for tests to compare with. */
uint32_t ftvm_crc32c_portable(uint32_t crc, const void *bytes, size_t count);

/* Whether the functions above use the processor's instruction. */
bool ftvm_crc32c_accelerated(void);
