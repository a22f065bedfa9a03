#pragma once
#include <stdbool.h>
#include <stdint.h>

/* Atomic access to words in shared memory, where Swift's `Atomic` (which owns its storage) cannot be used. */

static inline uint64_t ftvm_atomic_load_u64(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}
static inline void ftvm_atomic_store_u64(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}
static inline uint64_t ftvm_atomic_fetch_add_u64(uint64_t *word, uint64_t value) {
    return __atomic_fetch_add(word, value, __ATOMIC_ACQ_REL);
}
static inline uint64_t ftvm_atomic_fetch_or_u64(uint64_t *word, uint64_t bits) {
    return __atomic_fetch_or(word, bits, __ATOMIC_ACQ_REL);
}
static inline void ftvm_atomic_fetch_and_u64(uint64_t *word, uint64_t bits) {
    (void)__atomic_fetch_and(word, bits, __ATOMIC_ACQ_REL);
}
/* Replaces *word by `desired` if it still is `expected`; says whether it did. */
static inline bool ftvm_atomic_compare_exchange_u64(uint64_t *word, uint64_t expected, uint64_t desired) {
    return __atomic_compare_exchange_n(word, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
