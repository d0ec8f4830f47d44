/* A clock that can be set, to be preloaded into a server: the machine's, and the nanoseconds in the file that
   CHATLEDGER_TEST_CLOCK names. (libfaketime does more than that, and Postgres with it hangs in some of its shutdowns.) */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t second = 1000000000;
static const volatile int64_t *offset;

/* Everything else has to be safe in a signal handler. */
__attribute__((constructor)) static void find_offset(void)
{
    int file = open(getenv("CHATLEDGER_TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);

    if (mapped == MAP_FAILED)
        abort();
    close(file);
    offset = mapped;
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, which, now);

    if (!failed && which == CLOCK_REALTIME && offset) {
        int64_t shown = now->tv_sec * second + now->tv_nsec + *offset;
        now->tv_sec = shown / second;
        now->tv_nsec = shown % second;
    }
    return failed;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec shown;
    int failed = clock_gettime(CLOCK_REALTIME, &shown);

    (void) zone;
    now->tv_sec = shown.tv_sec;
    now->tv_usec = shown.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *now)
{
    struct timespec shown;

    clock_gettime(CLOCK_REALTIME, &shown);
    if (now)
        *now = shown.tv_sec;
    return shown.tv_sec;
}
