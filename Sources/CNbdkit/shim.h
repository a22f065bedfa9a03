#pragma once
/* Version 2 of the plugin interface (nbdkit-plugin(3)). The functions themselves are in the nbdkit
 * program that loads the plugin. */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

/* Variadic functions cannot be called from Swift. */
static inline void ftvm_nbdkit_error(const char *text) { nbdkit_error("%s", text); }
static inline void ftvm_nbdkit_debug(const char *text) { nbdkit_debug("%s", text); }
