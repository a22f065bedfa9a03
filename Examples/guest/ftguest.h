// What the parts of ftguest share.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Ends the program with errno's message.
_Noreturn void die(const char *what);

// The finaliser of splitmix64: every input bit reaches every output bit.
uint64_t mix(uint64_t value);

uint64_t monotonic_nanoseconds(void);
void sleep_milliseconds(unsigned milliseconds);

// Starts a thread that nobody waits for.
void start_thread(void *(*body)(void *), void *argument);

// False when the connection is lost.
bool send_all(int descriptor, const void *bytes, size_t length);

// Calls `obey` with each line that arrives, without its end, until that says false or the other side
// has ended. Closes nothing. `state` is obey's own.
void serve_lines(int descriptor, bool (*obey)(int descriptor, const char *line, void *state),
                 void *state);

// Accepts TCP connections for good, each one served and closed in a thread of its own.
_Noreturn void accept_connections(uint16_t port, void (*serve)(int descriptor));

// The servers that clients use to find out whether anything they were told was taken back
// (services.c). `boot` is the boot's identifier.
void start_services(const char *boot);

// Sends beacons from now on: sender 0 or 1, to an IPv4 address and UDP port, one every so many
// microseconds; 0 ends them. False when that makes no sense.
bool set_beacon(unsigned sender, const char *address, unsigned port, unsigned microseconds);
